use std::time::Duration;

use super::super::instance::Start;
use super::super::observation::Observation;
use super::super::private::{close, connected_pair, exchange, in_private_netns, on_this_kernel};
use super::*;

#[test]
fn an_order_is_not_for_the_next_socket_with_that_slot() {
    on_this_kernel("an_order_is_not_for_the_next_socket_with_that_slot", |pins| {
        let start = Start { owner: "test", lease: Duration::from_secs(60), leave_blocking_readers: false, detached: false, without: &[] };
        let instance = Instance::create(pins, &start)?;
        let met = || {
            in_private_netns(|| {
                let sockets = connected_pair()?;
                instance.meet_live_here()?;
                Ok(sockets)
            })
        };
        let (mut one, mut other) = met()?;
        pair(&instance);
        let mut observation = Observation::new(&instance);
        observation.adjust(&known(&instance))?;
        for _ in 0..LEARN_READS {
            exchange(&mut one, &mut other)?;
            exchange(&mut other, &mut one)?;
        }
        let before = known(&instance);
        assert!(close(&instance, [one, other], Duration::from_secs(10))?, "closed sockets stay known");

        let _next = met()?;
        let slots = |all: &[Known]| all.iter().map(|k| k.slot).collect::<HashSet<_>>();
        assert_eq!(slots(&known(&instance)), slots(&before), "the test wants the slots to be used again");
        enrol(&instance, &before)?;
        assert_eq!(enrolled(&instance), 0, "sockets that nobody has learned are in the map");
        Ok(())
    });
}
