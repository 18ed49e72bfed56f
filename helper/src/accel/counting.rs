//! Counting receive calls: it makes each of them on the machine some 50 ns slower, so it pauses where there are many and no socket that may be
//! accelerated is among those that are read.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::connection::is_undecided;
use super::instance::Instance;
use super::links;
use super::tracked::{TrackedSocket, peer_of};
use crate::pins::take_away;

/// The pinned program, and its pinned link while it is attached: a process that hands over leaves no gap.
pub const RECEIVED: &str = "received";
const LINK: &str = "counting";

/// How many receive calls there were on the machine while they were counted, for each CPU.
pub const CALLS: &str = "calls";

/// The count pauses when for so long no socket that may be accelerated was opened or read, and
const QUIET: Duration = Duration::from_millis(100);

/// so many receive calls a second were counted for nothing: with fewer it takes less than a thousandth of a CPU, and goes on.
const WASTED: f64 = 10_000.;

/// How long it pauses on average. Then all calls are counted again for a moment: a stream may have become a conversation.
const PAUSE: Duration = Duration::from_secs(1);

/// How soon it is tried again to begin a count while the program of the one before still runs.
const RETRY: Duration = Duration::from_millis(1);

/// A rate of calls over less than this says nothing.
const MEASURED: Duration = Duration::from_millis(10);

/// Begins a count.
///
/// # Errors
/// When the kernel does not attach the program.
pub fn begin(instance: &Instance) -> Result<()> {
    let link = instance.attach_program(RECEIVED)?;
    links::pin(&link, &instance.pins().path(LINK))?;
    instance.control().begin_count();
    Ok(())
}

/// Begins another count, once the program of the one before is detached; whether it has begun.
fn begin_again(instance: &Instance) -> Result<bool> {
    // The one before may have been ending when its process was killed.
    take_away(&instance.pins().path(LINK))?;
    if is_attached(instance)? {
        return Ok(false);
    }
    begin(instance)?;
    Ok(true)
}

/// Ends it. What is read from now on is not counted, which `control` states before.
fn end(instance: &Instance) -> Result<()> {
    instance.control().end_count();
    take_away(&instance.pins().path(LINK)).map(drop)
}

/// Whether the program still runs at each receive call. The kernel detaches it some time after its pin was removed (`bpf_free_inode` waits
/// for RCU, `bpf_link_put` for a work queue): attached again before that, it would count each call twice.
fn is_attached(instance: &Instance) -> Result<bool> {
    let (mut one, mut other) = UnixStream::pair().context("cannot make a pair of sockets")?;
    let before = count_calls(instance)?;
    one.write_all(b"x").and_then(|()| other.read_exact(&mut [0])).context("cannot use a pair of sockets")?;
    Ok(count_calls(instance)? != before)
}

fn count_calls(instance: &Instance) -> Result<u64> {
    let map = MapHandle::from_pinned_path(instance.pins().path(CALLS)).context("cannot open the count of receive calls")?;
    let each = map.lookup_percpu(&0_u32.to_ne_bytes(), MapFlags::ANY).context("cannot read the count of receive calls")?;
    Ok(each.into_iter().flatten().filter_map(|cpu| cpu.try_into().ok()).map(u64::from_ne_bytes).sum())
}

fn goes_on(instance: &Instance) -> bool {
    instance.control().counting.get() != 0
}

/// How long the pause after this count is: between half of the average and half as much again, so that a program that reads at intervals of its own
/// is observed after a few of them. Multiples of the golden ratio fall evenly into every part of that.
fn pause_after(count: u32) -> Duration {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    PAUSE.mul_f64(0.5 + (f64::from(count) * GOLDEN).fract())
}

/// Decides whether receive calls are counted.
#[derive(Debug)]
pub struct Counting {
    /// Cookie and reads of each slot at the last look.
    before: Vec<(u64, u64)>,
    /// When it was last worth it.
    worth: Instant,
    /// All calls counted, and when that was looked at.
    calls: (u64, Instant),
    /// When it begins again, in a pause.
    resumes: Option<Instant>,
}

impl Counting {
    /// As it is at the start: sockets may be opened. A pause of a process before this one ends.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { before: Vec::new(), worth: now, calls: (0, now), resumes: None }
    }

    /// When there is something to decide.
    pub fn due(&self) -> Option<Instant> {
        let quiet = self.worth + QUIET;
        self.resumes.or((quiet > Instant::now()).then_some(quiet))
    }

    /// Begins a count or ends it; `needed` says that a pair is in the map or about to go there, which must not be missed.
    ///
    /// # Errors
    /// When a count can neither begin nor end.
    pub fn adjust(&mut self, instance: &Instance, all: &[TrackedSocket], needed: bool) -> Result<()> {
        let now = Instant::now();
        let worth = self.is_worth_it(all) || needed;
        if worth {
            self.worth = now;
        }
        if goes_on(instance) {
            let wasted = self.calls_per_second(instance, now)?;
            if now.duration_since(self.worth) >= QUIET && wasted.is_some_and(|rate| rate > WASTED) {
                end(instance)?;
                self.resumes = Some(now + pause_after(instance.control().counts.get()));
            }
        } else if (worth || self.resumes.is_none_or(|at| at <= now)) && !instance.is_stopped() {
            // The process that ends the acceleration removes the pins.
            if !begin_again(instance)? {
                self.resumes = Some(now + RETRY);
                return Ok(());
            }
            self.resumes = None;
            self.worth = now;
            self.calls = (count_calls(instance)?, now);
        }
        Ok(())
    }

    /// Over the time since this was last asked, unless that is too short.
    fn calls_per_second(&mut self, instance: &Instance, now: Instant) -> Result<Option<f64>> {
        let (before, at) = self.calls;
        let time = now.duration_since(at);
        if time < MEASURED {
            return Ok(None);
        }
        self.calls = (count_calls(instance)?, now);
        let calls = u32::try_from(self.calls.0.saturating_sub(before)).unwrap_or(u32::MAX);
        Ok(Some(f64::from(calls) / time.as_secs_f64()))
    }

    /// Whether a socket has come since the last look, or one of a pair was read that is undecided.
    fn is_worth_it(&mut self, all: &[TrackedSocket]) -> bool {
        self.before.resize(all.last().map_or(0, |k| k.slot + 1), (0, 0));
        let mut worth = false;
        for k in all {
            let now = (k.end.cookie, k.end.reads);
            let before = std::mem::replace(&mut self.before[k.slot], now);
            worth |= before.0 != now.0 || (before.1 != now.1 && peer_of(all, k).is_some_and(|peer| is_undecided([&k.end, &peer.end])));
        }
        worth
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::insertion;
    use super::super::memory::layout::Slot;
    use super::super::observation::Observation;
    use super::super::pairing;
    use super::super::private::{connected_pair, converse, exchange, in_private_netns, on_this_kernel};
    use super::super::start::Start;
    use super::super::tracked::tracked;
    use super::*;
    use crate::pins::Pins;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// An acceleration, and a pair that it tracks.
    fn with_a_pair(pins: &Pins) -> Result<(Instance, TcpStream, TcpStream)> {
        let start = Start { lease: PATIENCE * 4, ..Start::sample(false) };
        let instance = Instance::create(pins, &start)?;
        let (one, other) = instance.private_pair()?;
        pairing::pair(&instance);
        Ok((instance, one, other))
    }

    /// Also where the test fails: its threads are waited for.
    struct SetAtEnd<'a>(&'a AtomicBool);

    impl Drop for SetAtEnd<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_count_that_begins_again_at_once_counts_each_call_once() {
        on_this_kernel("a_count_that_begins_again_at_once_counts_each_call_once", |pins| {
            let (instance, mut one, mut other) = with_a_pair(pins)?;
            let reads = || tracked(&instance).iter().map(|k| k.end.reads).sum::<u64>();
            for round in 0..100 {
                if round % 2 == 0 {
                    end(&instance)?;
                } else {
                    // As a process does that is killed meanwhile.
                    instance.control().end_count();
                }
                let before = reads();
                converse(&mut one, &mut other, 1)?;
                assert_eq!(reads(), before, "no count sees these");
                let mut counting = Counting::new();
                while !goes_on(&instance) {
                    counting.adjust(&instance, &[], true)?;
                }
                // The first call of a reader only records where it stands.
                converse(&mut one, &mut other, 3)?;
                assert_eq!(reads(), before + 4);
            }
            Ok(())
        })
    }

    #[test]
    fn a_pair_that_was_not_counted_for_a_while_is_accelerated_all_the_same() {
        on_this_kernel("a_pair_that_was_not_counted_for_a_while_is_accelerated_all_the_same", |pins| {
            let (instance, mut one, mut other) = with_a_pair(pins)?;
            // Those that were open before are candidates from the start, read or not: these shall not be.
            for k in tracked(&instance) {
                instance.ends.forget_flags(k.slot);
            }
            let mut observation = Observation::new(&instance);
            let sum =
                |count: fn(&Slot) -> u64| -> u64 { tracked(&instance).iter().filter_map(|k| instance.ends.get(k.slot)).map(count).sum() };
            exchange(&mut one, &mut other)?;
            assert_eq!(sum(|end| end.reads.get()), 1);

            // A program that is not chosen reads without end.
            let (mut noisy, mut listener) = in_private_netns(connected_pair)?;
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let noise = scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        exchange(&mut noisy, &mut listener)?;
                    }
                    anyhow::Ok(())
                });
                let outcome = (|| {
                    let _done = SetAtEnd(&done);
                    let until = Instant::now() + PATIENCE;
                    while goes_on(&instance) {
                        assert!(Instant::now() < until, "a count of others goes on");
                        observation.adjust(&tracked(&instance))?;
                    }
                    converse(&mut one, &mut other, 1)?;
                    assert_eq!(sum(|end| end.reads.get()), 1, "no count sees this");

                    let until = Instant::now() + PATIENCE;
                    while sum(|end| end.messages.get()) == 0 {
                        assert!(Instant::now() < until, "a pair that talks is not accelerated");
                        converse(&mut one, &mut other, 1)?;
                        observation.adjust(&tracked(&instance))?;
                        insertion::insert_ready(&instance, &tracked(&instance))?;
                    }
                    anyhow::Ok(())
                })();
                noise.join().expect("the noise ends")?;
                outcome
            })?;
            assert!(goes_on(&instance));
            Ok(())
        })
    }

    #[test]
    fn pauses_fall_into_every_tenth_of_their_range() {
        let (shortest, tenth) = (PAUSE.mul_f64(0.5), PAUSE.mul_f64(0.1));
        let mut met = [false; 10];
        for count in 1..=20 {
            met[(pause_after(count) - shortest).div_duration_f64(tenth) as usize] = true;
        }
        assert_eq!(met, [true; 10]);
    }
}
