//! Observing calls and sockets, as long as one has to be observed: it makes calls on the machine slower.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::calls::{Attachment, TRACEPOINT_LINGER};
use super::connection::Needs;
use super::counting::Counting;
use super::instance::Instance;
use super::tracked::{self, TrackedSocket, peer_of};

/// One of them, attached or not.
#[derive(Debug)]
struct Observer<L> {
    link: Option<L>,
    needed: Option<Instant>,
}

impl<L> Default for Observer<L> {
    fn default() -> Self {
        Self { link: None, needed: None }
    }
}

impl<L> Observer<L> {
    /// Attaches it if it is needed.
    fn attach_if(&mut self, needed: bool, attach: impl FnOnce() -> Result<L>) -> Result<()> {
        if needed && self.link.is_none() {
            self.link = Some(attach()?);
        }
        Ok(())
    }

    /// Lets go of it when it has not been needed for longer than it lingers; `farewell` is called before.
    fn release_unless(&mut self, needed: bool, now: Instant, linger: impl FnOnce(&L) -> Duration, farewell: impl FnOnce()) {
        if needed {
            self.needed = Some(now);
        } else if let Some(link) = &self.link
            && self.needed.is_none_or(|at| now.duration_since(at) > linger(link))
        {
            farewell();
            self.link = None;
        }
    }
}

/// The observers.
#[derive(Debug)]
pub struct Observation<'a> {
    instance: &'a Instance,
    calls: Observer<Attachment>,
    sends: Observer<OwnedFd>,
    arrivals: Observer<OwnedFd>,
    counting: Counting,
}

impl<'a> Observation<'a> {
    /// None yet. A process before this one may have had observers, which went with it: what it said of them no longer holds.
    pub fn new(instance: &'a Instance) -> Self {
        instance.control().end_epoch();
        instance.control().observe_arrivals(false);
        Self { instance, calls: Observer::default(), sends: Observer::default(), arrivals: Observer::default(), counting: Counting::new() }
    }

    /// Whether calls are observed.
    pub fn is_on(&self) -> bool {
        self.calls.link.is_some()
    }

    /// When this has to be adjusted, whatever happens.
    pub fn due(&self) -> Option<Instant> {
        self.counting.due()
    }

    /// Attaches the observers that are needed and detaches the others: receive calls are counted unless that is wasted ([`Counting`]), other
    /// calls are observed when a connection is in the map or may go there, sends only while the readers of one are profiled (the verdict
    /// sees those of connections in the map), and arriving data while it is open whether calls of one of them sleep. An epoch begins when all
    /// that it needs is attached, and ends before any of it is detached: a call that was not observed must never count.
    pub fn adjust(&mut self, all: &[TrackedSocket]) -> Result<()> {
        let instance = self.instance;
        let profiling = tracked::profiling(instance.control());
        let mut needs = Needs::default();
        for k in all {
            needs |= profiling.needs(&k.end, peer_of(all, k).map(|peer| &peer.end));
        }
        // One time for all: what needs sends needs calls, so these can never be detached before the epoch has ended.
        let now = Instant::now();
        let of_tracepoint = |_: &OwnedFd| TRACEPOINT_LINGER;
        self.arrivals.release_unless(needs.arrivals, now, of_tracepoint, || instance.control().observe_arrivals(false));
        self.sends.release_unless(needs.sends, now, of_tracepoint, || instance.control().end_epoch());
        self.calls.release_unless(needs.calls, now, Attachment::linger, || {});
        self.counting.adjust(instance, all, needs.calls)?;
        self.calls.attach_if(needs.calls, || instance.observe_calls())?;
        self.sends.attach_if(needs.sends, || {
            let link = instance.observe_sends()?;
            instance.control().begin_epoch();
            Ok(link)
        })?;
        self.arrivals.attach_if(needs.arrivals, || {
            let link = instance.observe_arrivals()?;
            instance.control().observe_arrivals(true);
            Ok(link)
        })
    }
}

impl Drop for Observation<'_> {
    fn drop(&mut self) {
        self.instance.control().end_epoch();
        self.instance.control().observe_arrivals(false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::connection::PROFILE_READS;
    use super::super::insertion;
    use super::super::pairing;
    use super::super::private::{converse, on_this_kernel};
    use super::super::start::Start;
    use super::super::tracked::tracked;
    use super::*;

    #[test]
    fn calls_that_were_not_observed_do_not_count() {
        on_this_kernel("calls_that_were_not_observed_do_not_count", |pins| {
            let instance = Instance::create(pins, &Start::sample(false))?;
            let (mut one, mut other) = instance.private_pair()?;
            let mut talk = |times| converse(&mut one, &mut other, times);
            let insert = || insertion::insert_ready(&instance, &tracked(&instance));
            pairing::pair(&instance);

            let mut before = Observation::new(&instance);
            before.adjust(&tracked(&instance))?;
            talk(PROFILE_READS - 1)?;
            drop(before);
            talk(PROFILE_READS)?;
            let mut after = Observation::new(&instance);
            after.adjust(&tracked(&instance))?;
            talk(PROFILE_READS - 1)?;
            assert_eq!(insert()?, 0, "reads from before, or that were not observed, counted");
            talk(1)?;
            assert_eq!(insert()?, 1);
            Ok(())
        })
    }
}
