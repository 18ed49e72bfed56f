//! Joining to their packets what the kernel reports without one: bytes written and read, route lookups, readers woken.

use sockpath_protocol::packet::PacketKind;
use sockpath_protocol::request::Protocol;

use super::conversation::DirectedConversation;
use super::hops::Answer;
use super::open::Open;
use super::{Assembler, MAX_ANSWERS, MAX_WAITING, ROUTE_AGE, TABLE_GAP};
use crate::trace::event::{Event, Hook};

impl Assembler {
    /// The write that holds the packet's first byte. Later packets of the same write began with it too.
    pub(super) fn take_write(&mut self, directed: DirectedConversation, event: &Event) -> Option<Event> {
        if event.payload == 0 {
            return None;
        }
        let writes = self.writes.get_mut(&directed)?;
        let after = |w: &Event| event.seq.wrapping_sub(w.seq).cast_signed() >= 0;
        // Older writes are in packets that left before.
        while writes.len() > 1 && writes.get(1).is_some_and(after) {
            writes.pop_front();
        }
        let write = writes.front().filter(|w| after(w) && event.seq.wrapping_sub(w.seq) < w.len.max(1) && w.at <= event.at)?;
        Some(write.clone())
    }

    /// The last lookup that this CPU made for these addresses just before; one lookup shows up once for each table.
    pub(super) fn take_route(&mut self, event: &Event) -> Option<Event> {
        let same = |r: &Event| {
            r.cpu == event.cpu
                && r.pid == event.pid
                && r.at <= event.at
                && event.at - r.at <= ROUTE_AGE
                && r.flow.to.ip() == event.flow.to.ip()
        };
        let mut found: Option<&Event> = None;
        for route in self.routes.iter().filter(|r| same(r)).rev() {
            if found.is_none_or(|later| later.at - route.at <= TABLE_GAP) {
                found = Some(route);
            }
        }
        let found = found.cloned();
        self.routes.retain(|r| !same(r));
        found
    }

    pub(super) fn written(&mut self, event: Event) {
        let Some(protocol) = event.protocol else { return };
        let directed = self.conversations.of(protocol, event.flow, 0, 0);
        let writes = self.writes.entry(directed).or_default();
        // One call shows up once for each sk_buff it fills; the bytes that are left shrink.
        if writes.len() >= MAX_WAITING {
            writes.pop_front();
        }
        writes.push_back(event);
    }

    /// Bytes that go socket to socket; or the call that wrote a datagram, which is known already.
    pub(super) fn bypassed(&mut self, event: Event) {
        let Some(protocol) = event.protocol else { return };
        if event.hook == Hook::TRACE_WRITE_CALL && !self.open.contains_key(&event.id) {
            self.last_id = self.last_id.max(event.id);
            let directed = self.conversations.of(protocol, event.flow, 0, 0);
            let mut open = Open::new(directed, protocol, &event);
            open.kind = PacketKind::Bypass;
            let id = event.id;
            self.events += usize::from(open.add(event));
            self.open.insert(id, open);
            return;
        }
        let Some(open) = self.open.get_mut(&event.id) else { return };
        match event.hook {
            Hook::TRACE_WRITE_CALL => {
                // A lookup before the call was that of connect(2).
                let before = open.events.len();
                open.events.retain(|s| s.hook != Hook::TRACE_FIB_LOOKUP || s.at >= event.at);
                self.events = self.events.saturating_sub(before - open.events.len());
            }
            Hook::TRACE_BYPASS_READY => (open.woken, open.arrived_in) = (true, Some(event.netns)),
            _ => open.copied = true,
        }
        self.events += usize::from(open.add(event));
    }

    pub(super) fn routed(&mut self, event: Event) {
        // On a node the packet is known already: it has just been seen on this CPU.
        if let Some(last) = self.on_cpu.get(&event.cpu)
            && last.hook == Hook::TRACE_NF_LAST_PRE_ROUTING
            && let Some(open) = self.open.get_mut(&last.id)
            && open.events.last().is_some_and(|s| s.flow.to.ip() == event.flow.to.ip() && event.at >= s.at && event.at - s.at < ROUTE_AGE)
        {
            return;
        }
        if self.routes.len() >= MAX_WAITING {
            self.routes.pop_front();
        }
        self.routes.push_back(event);
    }

    pub(super) fn woken(&mut self, mut event: Event) {
        let Some(protocol) = event.protocol else { return };
        let directed = self.conversations.find(protocol, event.flow.reversed()).filter(|_| protocol == Protocol::Tcp);
        let Some(directed) = directed else {
            // UDP and ICMP know their packet. What wakes a listener is the packet that this CPU has just delivered.
            let last = self.on_cpu.get(&event.cpu).filter(|last| last.netns == event.netns && self.is_arrival(last.hook));
            let id = if event.id == 0 { last.map(|last| last.id) } else { Some(event.id) };
            if let Some(open) = id.and_then(|id| self.open.get_mut(&id))
                && open.protocol == protocol
                && !open.woken
            {
                open.woken = true;
                event.len = open.payload();
                self.events += usize::from(open.add(event));
            }
            return;
        };
        for id in self.waiting.get(&directed).into_iter().flatten() {
            let Some(open) = self.open.get_mut(id) else { continue };
            // Only what is in the queue by now; a segment ahead of a gap is not.
            if !open.woken && event.seq.wrapping_sub(open.end_seq()).cast_signed() >= 0 {
                open.woken = true;
                let len = open.payload();
                self.events += usize::from(open.add(Event { len, ..event.clone() }));
            }
        }
    }

    /// A reader's call returned: every packet up to what it has read by now is copied.
    pub(super) fn read(&mut self, event: &Event) {
        if event.protocol != Some(Protocol::Tcp) {
            self.copied(event.id, event);
            return;
        }
        let Some(directed) = self.conversations.find(Protocol::Tcp, event.flow.reversed()) else { return };
        let Some(waiting) = self.waiting.get_mut(&directed) else { return };
        let mut read = Vec::new();
        waiting.retain(|id| match self.open.get(id) {
            Some(open) if event.seq.wrapping_sub(open.end_seq()).cast_signed() >= 0 => {
                read.push(*id);
                false
            }
            Some(_) => true,
            None => false,
        });
        for id in read {
            self.copied(id, event);
        }
    }

    pub(super) fn copied(&mut self, id: u32, event: &Event) {
        let Some(open) = self.open.get_mut(&id) else { return };
        if open.copied {
            return;
        }
        open.copied = true;
        self.events += usize::from(open.add(event.clone()));
    }

    /// The reader takes it, or it is freed: the programs know the packet, but not where they are.
    pub(super) fn at_the_reader(&mut self, mut event: Event) {
        let Some(open) = self.open.get_mut(&event.id) else { return };
        if open.was_at(event.hook) {
            return;
        }
        event.netns = open.arrived_in.unwrap_or(0);
        self.events += usize::from(open.add(event));
    }

    /// A neighbour's address became known: the packets that waited for it go on after this.
    pub(super) fn resolved(&mut self, event: &Event) {
        const NUD_INCOMPLETE: u32 = 0x01;
        const NUD_FAILED: u32 = 0x20;
        self.incident(event);
        if matches!(event.arg, NUD_INCOMPLETE | NUD_FAILED) {
            return;
        }
        if self.answers.len() >= MAX_ANSWERS {
            self.answers.pop_front();
        }
        self.answers.push_back(Answer { netns: event.netns, ifindex: event.ifindex, at: event.at });
    }
}
