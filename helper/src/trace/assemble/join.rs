//! Joining to their packets what the kernel reports without one: bytes written and read, route lookups, readers woken.

use sockpath_protocol::packet::PacketKind;
use sockpath_protocol::request::Protocol;

use super::conversation::Course;
use super::hops::Answer;
use super::open::Open;
use super::{Assembler, MAX_ANSWERS, MAX_WAITING, ROUTE_AGE, TABLE_GAP};
use crate::trace::event::{Hook, Sight};

impl Assembler {
    /// The write that holds the packet's first byte. Later packets of the same write began with it too.
    pub(super) fn take_write(&mut self, course: Course, sight: &Sight) -> Option<Sight> {
        if sight.payload == 0 {
            return None;
        }
        let writes = self.writes.get_mut(&course)?;
        let after = |w: &Sight| sight.seq.wrapping_sub(w.seq).cast_signed() >= 0;
        // Older writes are in packets that left before.
        while writes.len() > 1 && writes.get(1).is_some_and(after) {
            writes.pop_front();
        }
        let write = writes.front().filter(|w| after(w) && sight.seq.wrapping_sub(w.seq) < w.len.max(1) && w.at <= sight.at)?;
        Some(write.clone())
    }

    /// The last lookup that this CPU made for these addresses just before; one lookup shows up once for each table.
    pub(super) fn take_route(&mut self, sight: &Sight) -> Option<Sight> {
        let same = |r: &Sight| {
            r.cpu == sight.cpu
                && r.pid == sight.pid
                && r.at <= sight.at
                && sight.at - r.at <= ROUTE_AGE
                && r.flow.to.ip() == sight.flow.to.ip()
        };
        let mut found: Option<&Sight> = None;
        for route in self.routes.iter().filter(|r| same(r)).rev() {
            if found.is_none_or(|later| later.at - route.at <= TABLE_GAP) {
                found = Some(route);
            }
        }
        let found = found.cloned();
        self.routes.retain(|r| !same(r));
        found
    }

    pub(super) fn written(&mut self, sight: Sight) {
        let Some(protocol) = sight.protocol else { return };
        let course = self.conversations.of(protocol, sight.flow, 0, 0);
        let writes = self.writes.entry(course).or_default();
        // One call shows up once for each sk_buff it fills; the bytes that are left shrink.
        if writes.len() >= MAX_WAITING {
            writes.pop_front();
        }
        writes.push_back(sight);
    }

    /// Bytes that go socket to socket; or the call that wrote a datagram, which is known already.
    pub(super) fn bypassed(&mut self, sight: Sight) {
        let Some(protocol) = sight.protocol else { return };
        if sight.hook == Hook::TRACE_WRITE_CALL && !self.open.contains_key(&sight.id) {
            self.last_id = self.last_id.max(sight.id);
            let course = self.conversations.of(protocol, sight.flow, 0, 0);
            let mut open = Open::new(course, protocol, &sight);
            open.kind = PacketKind::Bypass;
            let id = sight.id;
            self.sights += usize::from(open.add(sight));
            self.open.insert(id, open);
            return;
        }
        let Some(open) = self.open.get_mut(&sight.id) else { return };
        match sight.hook {
            Hook::TRACE_WRITE_CALL => {
                // A lookup before the call was that of connect(2).
                let before = open.sights.len();
                open.sights.retain(|s| s.hook != Hook::TRACE_FIB_LOOKUP || s.at >= sight.at);
                self.sights = self.sights.saturating_sub(before - open.sights.len());
            }
            Hook::TRACE_BYPASS_READY => (open.woken, open.arrived_in) = (true, Some(sight.netns)),
            _ => open.copied = true,
        }
        self.sights += usize::from(open.add(sight));
    }

    pub(super) fn routed(&mut self, sight: Sight) {
        // On a node the packet is known already: it has just been seen on this CPU.
        if let Some(last) = self.on_cpu.get(&sight.cpu)
            && last.hook == Hook::TRACE_NF_LAST_PRE_ROUTING
            && let Some(open) = self.open.get_mut(&last.id)
            && open.sights.last().is_some_and(|s| s.flow.to.ip() == sight.flow.to.ip() && sight.at >= s.at && sight.at - s.at < ROUTE_AGE)
        {
            return;
        }
        if self.routes.len() >= MAX_WAITING {
            self.routes.pop_front();
        }
        self.routes.push_back(sight);
    }

    pub(super) fn woken(&mut self, mut sight: Sight) {
        let Some(protocol) = sight.protocol else { return };
        let course = self.conversations.find(protocol, sight.flow.reversed()).filter(|_| protocol == Protocol::Tcp);
        let Some(course) = course else {
            // UDP and ICMP know their packet. What wakes a listener is the packet that this CPU has just delivered.
            let last = self.on_cpu.get(&sight.cpu).filter(|last| last.netns == sight.netns && self.is_arrival(last.hook));
            let id = if sight.id == 0 { last.map(|last| last.id) } else { Some(sight.id) };
            if let Some(open) = id.and_then(|id| self.open.get_mut(&id))
                && open.protocol == protocol
                && !open.woken
            {
                open.woken = true;
                sight.len = open.payload();
                self.sights += usize::from(open.add(sight));
            }
            return;
        };
        for id in self.waiting.get(&course).into_iter().flatten() {
            let Some(open) = self.open.get_mut(id) else { continue };
            // Only what is in the queue by now; a segment ahead of a gap is not.
            if !open.woken && sight.seq.wrapping_sub(open.end_seq()).cast_signed() >= 0 {
                open.woken = true;
                let len = open.payload();
                self.sights += usize::from(open.add(Sight { len, ..sight.clone() }));
            }
        }
    }

    /// A reader's call returned: every packet up to what it has read by now is copied.
    pub(super) fn read(&mut self, sight: &Sight) {
        if sight.protocol != Some(Protocol::Tcp) {
            self.copied(sight.id, sight);
            return;
        }
        let Some(course) = self.conversations.find(Protocol::Tcp, sight.flow.reversed()) else { return };
        let Some(waiting) = self.waiting.get_mut(&course) else { return };
        let mut read = Vec::new();
        waiting.retain(|id| match self.open.get(id) {
            Some(open) if sight.seq.wrapping_sub(open.end_seq()).cast_signed() >= 0 => {
                read.push(*id);
                false
            }
            Some(_) => true,
            None => false,
        });
        for id in read {
            self.copied(id, sight);
        }
    }

    pub(super) fn copied(&mut self, id: u32, sight: &Sight) {
        let Some(open) = self.open.get_mut(&id) else { return };
        if open.copied {
            return;
        }
        open.copied = true;
        self.sights += usize::from(open.add(sight.clone()));
    }

    /// The reader takes it, or it is freed: the programs know the packet, but not where they are.
    pub(super) fn at_the_reader(&mut self, mut sight: Sight) {
        let Some(open) = self.open.get_mut(&sight.id) else { return };
        if open.was_at(sight.hook) {
            return;
        }
        sight.netns = open.arrived_in.unwrap_or(0);
        self.sights += usize::from(open.add(sight));
    }

    /// A neighbour's address became known: the packets that waited for it go on after this.
    pub(super) fn resolved(&mut self, sight: &Sight) {
        const NUD_INCOMPLETE: u32 = 0x01;
        const NUD_FAILED: u32 = 0x20;
        self.incident(sight);
        if matches!(sight.arg, NUD_INCOMPLETE | NUD_FAILED) {
            return;
        }
        if self.answers.len() >= MAX_ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back(Answer { netns: sight.netns, ifindex: sight.ifindex, at: sight.at });
    }
}
