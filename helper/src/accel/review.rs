//! Looking after the pairs in the map: those that must not be there, or do not profit, leave; some come back.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sockpath_bpf::accel::types::{accel_pass, accel_state};

use super::connections::{self, Known, MOST_PER_TURN, peer_of};
use super::instance::Instance;

/// A pair that sent less by TCP since the last look is not judged.
const JUDGED_BYTES: u64 = 256 << 10;

/// Passes for a reason that does not go away by itself before the pair leaves.
const PERSISTENT: u32 = 16;

/// Reasons that do not go away at all: a wrong wake-up of a reader may follow (completions of MSG_ZEROCOPY), or plaintext.
const AT_ONCE: [accel_pass; 2] = [accel_pass::ACCEL_ULP, accel_pass::ACCEL_ZEROCOPY];

/// How long a pair that did not profit stays with TCP, the first time and at most.
const FIRST_EXILE: Duration = Duration::from_secs(2);
const LONGEST_EXILE: Duration = Duration::from_secs(60);

/// How a pair did at the last look.
#[derive(Debug, Clone, Copy)]
struct Look {
    bytes: u64,
    pass_bytes: u64,
    reads: [u64; 2],
    spills: u32,
    at: Instant,
}

/// A pair that left because TCP was faster.
#[derive(Debug, Clone, Copy)]
struct Exile {
    since: Instant,
    length: Duration,
}

/// What is remembered about pairs, by the cookie of the end with the lower slot.
#[derive(Debug, Default)]
pub struct Review {
    looks: HashMap<u64, Look>,
    exiles: HashMap<u64, Exile>,
}

/// What to do with a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    Stay,
    Leave(accel_pass),
}

impl Review {
    /// Looks at every pair once.
    pub fn look(&mut self, instance: &Instance, all: &[Known]) {
        connections::release_those_out(instance, all);
        let now = Instant::now();
        let mut looks = HashMap::with_capacity(self.looks.len());
        for a in all {
            let Some(b) = peer_of(all, a).filter(|b| a.slot < b.slot) else { continue };
            let key = a.end.cookie;
            let look = Look {
                bytes: a.end.bytes + b.end.bytes,
                pass_bytes: a.end.pass_bytes + b.end.pass_bytes,
                reads: [a.end.reads, b.end.reads],
                spills: [a, b].iter().map(|k| connections::passes(instance, k, accel_pass::ACCEL_BUDGET)).fold(0, u32::wrapping_add),
                at: now,
            };
            let before = self.looks.get(&key).copied();
            looks.insert(key, look);
            let enrolled = [a, b].iter().all(|k| k.end.state == accel_state::ACCEL_ENROLLED);
            if enrolled && a.end.hold == 0 {
                if let Judgement::Leave(why) = judge(instance, [a, b], before.as_ref(), &look) {
                    if why == accel_pass::ACCEL_SLOWER {
                        let length = self.exiles.get(&key).map_or(FIRST_EXILE, |e| (e.length * 2).min(LONGEST_EXILE));
                        self.exiles.insert(key, Exile { since: now, length });
                    }
                    instance.ends.order_out([a.socket(), b.socket()], why);
                }
            } else if a.end.left == accel_pass::ACCEL_SLOWER
                && a.end.hold == 0
                && self.exiles.get(&key).is_none_or(|e| now.duration_since(e.since) >= e.length)
                && before.is_some_and(|before| converses(&before, &look))
            {
                instance.ends.let_back([a.socket(), b.socket()]);
            }
        }
        self.exiles.retain(|key, _| looks.contains_key(key));
        self.looks = looks;
    }
}

/// Whether a pair in the map may stay there.
fn judge(instance: &Instance, ends: [&Known; 2], before: Option<&Look>, now: &Look) -> Judgement {
    for reader in ends {
        if let Some(why) = reader.peculiarity() {
            return Judgement::Leave(why);
        }
    }
    for writer in ends {
        let lasting = [
            accel_pass::ACCEL_ULP,
            accel_pass::ACCEL_ZEROCOPY,
            accel_pass::ACCEL_RCVLOWAT,
            accel_pass::ACCEL_UNACCOUNTED,
            accel_pass::ACCEL_URGENT,
            accel_pass::ACCEL_BLOCKING,
        ];
        let end = &writer.end;
        if end.fast == 0
            && lasting.contains(&end.last_pass)
            && (AT_ONCE.contains(&end.last_pass) || connections::passes(instance, writer, end.last_pass) >= PERSISTENT)
        {
            return Judgement::Leave(end.last_pass);
        }
    }
    // TCP below a socket in a sockmap is slower than TCP alone: a pair that mostly goes by TCP is better off outside.
    let Some(before) = before else { return Judgement::Stay };
    let by_tcp = now.pass_bytes.wrapping_sub(before.pass_bytes);
    // A spill over the budget makes the reader cross between two queues, and holds TCP up: not twice.
    if now.spills != before.spills {
        return Judgement::Leave(accel_pass::ACCEL_SLOWER);
    }
    let redirected = now.bytes.wrapping_sub(before.bytes);
    let turns = [0, 1].map(|i| now.reads[i].wrapping_sub(before.reads[i])).into_iter().min().unwrap_or(0);
    if redirected >= 4 * MOST_PER_TURN && redirected / turns.max(1) > MOST_PER_TURN {
        return Judgement::Leave(accel_pass::ACCEL_SLOWER);
    }
    if by_tcp >= JUDGED_BYTES && by_tcp > redirected / 2 {
        return Judgement::Leave(accel_pass::ACCEL_SLOWER);
    }
    Judgement::Stay
}

/// Whether both sides read in turn since the last look, as requests and answers do.
fn converses(before: &Look, now: &Look) -> bool {
    let [a, b] = [0, 1].map(|i| now.reads[i].wrapping_sub(before.reads[i]));
    let seconds = now.at.duration_since(before.at).as_secs_f64();
    let turns = a.min(b);
    turns as f64 >= 20.0 * seconds && turns >= 2 && a.max(b) <= turns.saturating_mul(4)
}
