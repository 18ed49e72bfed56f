//! From what the kernel dumps to a [`Ruleset`] (include/uapi/linux/netfilter/nf_tables.h).

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{Base, Chain, ChainKind, Engine, Hook, Rule, Ruleset, Table};
use sockpath_netlink::Attributes;

use self::user_data::user_comment;

mod expression;
mod extension;
pub mod legacy;
mod set;
#[cfg(test)]
mod tests;
mod user_data;

/// `NFT_MSG_NEWCHAIN`.
pub const NEW_CHAIN: u16 = 3;
/// `NFT_MSG_NEWRULE`.
pub const NEW_RULE: u16 = 6;
/// `NFT_MSG_NEWSET`.
pub const NEW_SET: u16 = 9;
/// `NFT_MSG_NEWSETELEM`.
pub const NEW_ELEMENTS: u16 = 12;

/// Reads the messages of a dump one by one: chains first, then sets, their elements, and rules at last.
#[derive(Debug, Default)]
pub struct Reader {
    ruleset: Ruleset,
    tables: HashMap<(u8, String), Arc<Table>>,
    chains: HashMap<(u8, String, String), u32>,
    sets: HashMap<(u8, String, String), u32>,
}

impl Reader {
    /// A message of a dump: its kind (`NFT_MSG_*`), address family and attributes.
    pub fn message(&mut self, kind: u16, family: u8, body: &[u8]) {
        match kind {
            NEW_CHAIN => self.chain(family, body),
            NEW_SET => self.set(family, body),
            NEW_ELEMENTS => self.elements(family, body),
            NEW_RULE => self.rule(family, body),
            _ => {}
        }
    }

    fn chain(&mut self, family: u8, body: &[u8]) {
        let a = Attributes::of(body);
        let (Some(table), Some(name)) = (a.text(1), a.text(3)) else { return };
        let base = a.nested(4).and_then(|hook| {
            let at = Hook::from_number(hook.network_word(1)?)?;
            let kind = if a.text(7).as_deref() == Some("nat") { ChainKind::Nat } else { ChainKind::Filter };
            Some(Base { hook: at, priority: hook.network_word(2)?.cast_signed(), kind, drops: a.network_word(5) == Some(0) })
        });
        let chain = Chain {
            table: self.table(family, &table),
            name: name.as_str().into(),
            base: base.filter(|_| matches!(family, 1 | 2 | 10)),
            packets: a.nested(8).and_then(|c| c.network_long(2)),
            rules: Vec::new(),
        };
        self.chains.insert((family, table, name), index(self.ruleset.chains.len()));
        self.ruleset.chains.push(chain);
    }

    fn set(&mut self, family: u8, body: &[u8]) {
        let a = Attributes::of(body);
        let (Some(table), Some(name)) = (a.text(1), a.text(2)) else { return };
        self.sets.insert((family, table, name), index(self.ruleset.sets.len()));
        self.ruleset.sets.push(set::set(&a));
    }

    fn elements(&mut self, family: u8, body: &[u8]) {
        let a = Attributes::of(body);
        let (Some(table), Some(name)) = (a.text(1), a.text(2)) else { return };
        let Some(at) = self.sets.get(&(family, table.clone(), name)).copied() else { return };
        let Some(list) = a.nested(3) else {
            // They could not be read.
            self.ruleset.sets[at as usize].incomplete = true;
            return;
        };
        let chains = &self.chains;
        let chain = |to: &str| chains.get(&(family, table.clone(), to.to_owned())).copied();
        set::add(&mut self.ruleset.sets[at as usize], &list, &chain);
    }

    fn rule(&mut self, family: u8, body: &[u8]) {
        let a = Attributes::of(body);
        let (Some(table), Some(chain), Some(handle)) = (a.text(1), a.text(2), a.network_long(3)) else { return };
        let Some(at) = self.chains.get(&(family, table.clone(), chain)).copied() else { return };
        let chain_at = |name: &str| self.chain_at(family, &table, name);
        let set_at = |name: &str| self.set_at(family, &table, name);
        let mut decoder = expression::Decoder::new(&chain_at, &set_at);
        decoder.comment = a.get(7).and_then(user_comment);
        for expression in a.nested(4).iter().flat_map(Attributes::values) {
            let expression = Attributes::of(expression);
            if let Some(name) = expression.text(1) {
                decoder.read(&name, &expression.nested(2).unwrap_or_else(|| Attributes::of(&[])));
            }
        }
        let rule = Rule {
            handle,
            comment: decoder.comment.map(Into::into),
            packets: decoder.packets,
            expressions: decoder.expressions.into(),
            effects: decoder.effects,
        };
        self.ruleset.chains[at as usize].rules.push(rule);
    }

    /// A table of iptables-legacy.
    pub fn legacy(&mut self, table: &legacy::Table<'_>) {
        legacy::read(table, &mut self.ruleset);
    }

    /// Something that could not be read, in words.
    pub fn gap(&mut self, what: String) {
        self.ruleset.gaps.push(what);
    }

    /// The whole.
    #[must_use]
    pub fn finish(mut self) -> Ruleset {
        self.ruleset.sets.iter_mut().for_each(set::finish);
        self.ruleset
    }

    fn table(&mut self, family: u8, name: &str) -> Arc<Table> {
        let new = || Arc::new(Table { engine: Engine::Nftables, family, name: name.to_owned() });
        Arc::clone(self.tables.entry((family, name.to_owned())).or_insert_with(new))
    }

    fn chain_at(&self, family: u8, table: &str, name: &str) -> Option<u32> {
        self.chains.get(&(family, table.to_owned(), name.to_owned())).copied()
    }

    fn set_at(&self, family: u8, table: &str, name: &str) -> Option<u32> {
        self.sets.get(&(family, table.to_owned(), name.to_owned())).copied()
    }
}

fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
