//! When the machine-wide hooks are attached. They add some 60 ns each time they run, for every packet of the machine, whatever
//! the programs do, so they are detached where that takes nothing from the picture (or next to nothing).

/// Recorded packets are a small share of the traffic from this many times the rate on: then a part of each second is enough.
const HIGH_RATE_FACTOR: u64 = 10;
/// For this part of each second (of `CLOCK_REALTIME`, so that all nodes watch at the same time) the hooks are attached while the packet
/// rate is high.
const WATCHED_MS: u64 = 250;
/// Runs a second from which on detaching is worth it: the hooks then take more than 1 % of a CPU.
const WORTH_DETACHING: u64 = 200_000;
/// A pair that says nothing for this long, in nanoseconds, is silent. The first packet after a silence is seen by netfilter's hooks
/// alone, so it must be longer than the pauses of ordinary traffic.
const SILENCE_NS: u64 = 2_000_000_000;
/// The pair's rate is counted over at least this time, in nanoseconds.
const COUNT_NS: u64 = 200_000_000;

/// What is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything.
    Watching,
    /// The pair is silent while others are busy: the machine-wide hooks are detached until the pair sends something. Packets
    /// are recorded at the netfilter hooks alone until then.
    Silent,
    /// The pair's packet rate is high: nothing is recorded for the rest of this second.
    Paused,
}

/// What a look at the trace found.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub now_ns: u64,
    /// `CLOCK_REALTIME`, milliseconds.
    pub wall_ms: u64,
    /// Packets of the pair so far.
    pub packets: u64,
    /// Runs of the programs in a second, as far as known.
    pub runs_per_second: u64,
}

/// Decides which hooks are attached, by the packet rate of the pair and the runs of the programs.
#[derive(Debug)]
pub struct DutyCycle {
    /// Packets of the pair in a second from which on its packet rate is high; `None` when every packet is recorded.
    high_rate: Option<u64>,
    may_be_silent: bool,
    mode: Mode,
    packets: u64,
    last_packet_ns: u64,
    counted_from: (u64, u64),
    rate_is_high: bool,
}

impl DutyCycle {
    /// `packets_per_second` 0 records every packet and never detaches the hooks. `may_be_silent`: all packets of the pair begin where a
    /// netfilter link of a pod sees them.
    #[must_use]
    pub fn new(packets_per_second: u32, may_be_silent: bool, now_ns: u64) -> Self {
        Self {
            high_rate: (packets_per_second > 0).then(|| u64::from(packets_per_second) * HIGH_RATE_FACTOR),
            may_be_silent: may_be_silent && packets_per_second > 0,
            mode: Mode::Watching,
            packets: 0,
            last_packet_ns: now_ns,
            counted_from: (now_ns, 0),
            rate_is_high: false,
        }
    }

    /// What should be attached now.
    pub fn look(&mut self, look: Look) -> Mode {
        if look.packets != self.packets {
            self.packets = look.packets;
            self.last_packet_ns = look.now_ns;
            if self.mode == Mode::Silent {
                self.watch(look);
            }
        }
        let open = look.wall_ms % 1000 < WATCHED_MS;
        match self.mode {
            Mode::Watching => {
                let (from, packets) = self.counted_from;
                let counted = look.now_ns.saturating_sub(from);
                if counted >= COUNT_NS {
                    let rate = (look.packets - packets).saturating_mul(1_000_000_000) / counted;
                    self.rate_is_high = self.high_rate.is_some_and(|least| rate >= least);
                    self.counted_from = (look.now_ns, look.packets);
                }
                let silent = look.now_ns.saturating_sub(self.last_packet_ns) >= SILENCE_NS;
                if self.rate_is_high && !open {
                    self.mode = Mode::Paused;
                } else if self.may_be_silent && silent && look.runs_per_second >= WORTH_DETACHING {
                    self.mode = Mode::Silent;
                }
            }
            Mode::Paused if open => self.watch(look),
            Mode::Paused | Mode::Silent => {}
        }
        self.mode
    }

    /// The pair may speak without packets: netfilter's hooks would not hear it.
    pub fn never_silent(&mut self) {
        self.may_be_silent = false;
    }

    /// Something is about to happen, or what was decided cannot be done.
    pub fn watch(&mut self, look: Look) {
        self.mode = Mode::Watching;
        self.last_packet_ns = look.now_ns;
        self.counted_from = (look.now_ns, look.packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(ms: u64, packets: u64, runs_per_second: u64) -> Look {
        Look { now_ns: ms * MS, wall_ms: ms, packets, runs_per_second }
    }

    #[test]
    fn traffic_at_a_high_rate_is_watched_for_a_part_of_each_second() {
        let mut duty_cycle = DutyCycle::new(200, true, 0);
        assert_eq!(duty_cycle.look(at(100, 1_000, 0)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(210, 2_100, 0)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(250, 2_500, 0)), Mode::Paused);
        assert_eq!(duty_cycle.look(at(999, 10_000, 0)), Mode::Paused);
        assert_eq!(duty_cycle.look(at(1_000, 10_000, 0)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(1_249, 12_000, 0)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(1_250, 12_500, 0)), Mode::Paused);
        // It has calmed down.
        assert_eq!(duty_cycle.look(at(2_000, 12_500, 0)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(2_245, 12_510, 0)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(2_600, 12_520, 0)), Mode::Watching);
    }

    #[test]
    fn hooks_of_a_silent_pair_are_detached_while_others_are_busy() {
        let mut duty_cycle = DutyCycle::new(200, true, 0);
        assert_eq!(duty_cycle.look(at(1_900, 0, 1_000_000)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(2_100, 0, 100_000)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(2_600, 0, 1_000_000)), Mode::Silent);
        assert_eq!(duty_cycle.look(at(2_700, 0, 0)), Mode::Silent);
        assert_eq!(duty_cycle.look(at(2_705, 1, 0)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(4_700, 1, 1_000_000)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(4_705, 1, 1_000_000)), Mode::Silent);
    }

    #[test]
    fn hooks_stay_attached_for_every_packet() {
        let mut duty_cycle = DutyCycle::new(0, true, 0);
        assert_eq!(duty_cycle.look(at(400, 1_000_000, 1_000_000)), Mode::Watching);
        assert_eq!(duty_cycle.look(at(5_000, 1_000_000, 1_000_000)), Mode::Watching);
    }
}
