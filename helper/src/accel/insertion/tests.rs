use std::collections::HashSet;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::ensure;
use sockpath_bpf::accel::types::accel_pass;

use super::super::connection::PROFILE_READS;
use super::super::observation::Observation;
use super::super::pairing::pair;
use super::super::private::{converse, on_this_kernel};
use super::super::self_test::close;
use super::super::start::Start;
use super::super::tracked::{inserted, profiling, tracked};
use super::super::upkeep::Upkeep;
use super::*;

/// Both ends of a connection whose readers are profiled, and the observation that goes on.
fn profiled(instance: &Instance) -> Result<(Observation<'_>, TcpStream, TcpStream)> {
    let (mut one, mut other) = instance.private_pair()?;
    pair(instance);
    let mut observation = Observation::new(instance);
    observation.adjust(&tracked(instance))?;
    converse(&mut one, &mut other, PROFILE_READS)?;
    Ok((observation, one, other))
}

#[test]
fn an_order_is_not_for_the_next_socket_with_that_slot() {
    on_this_kernel("an_order_is_not_for_the_next_socket_with_that_slot", |pins| {
        let instance = Instance::create(pins, &Start::sample(false))?;
        let (_observation, one, other) = profiled(&instance)?;
        let before = tracked(&instance);
        assert!(close(&instance, [one, other], Duration::from_secs(10))?, "closed sockets stay tracked");

        let _next = instance.private_pair()?;
        let slots = |all: &[TrackedSocket]| all.iter().map(|k| k.slot).collect::<HashSet<_>>();
        assert_eq!(slots(&tracked(&instance)), slots(&before), "the test wants the slots to be used again");
        insert_ready(&instance, &before)?;
        assert_eq!(inserted(&instance), 0, "sockets that were not profiled are in the map");
        assert!(tracked(&instance).iter().all(|k| k.end.result == 0), "an order for others keeps them out for good");
        Ok(())
    });
}

#[test]
fn an_end_that_went_in_alone_comes_out() {
    on_this_kernel("an_end_that_went_in_alone_comes_out", |pins| {
        let instance = Instance::create(pins, &Start::sample(false))?;
        let (_observation, _one, other) = profiled(&instance)?;
        // Such a socket is not inserted.
        let bytes: libc::c_int = 2;
        // SAFETY: the option is an int that lives through the call.
        let r = unsafe { libc::setsockopt(other.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const bytes).cast(), 4) };
        ensure!(r == 0, "SO_RCVLOWAT: {}", std::io::Error::last_os_error());
        assert_eq!(insert_ready(&instance, &tracked(&instance))?, 1);
        assert_eq!(inserted(&instance), 1, "the test wants one end to be refused");

        let mut upkeep = Upkeep::default();
        for _ in 0..8 {
            let ready = upkeep.decide(&instance, &tracked(&instance), &profiling(instance.control()), |_| false);
            assert!(ready.is_empty(), "it is tried again");
            instance.look()?;
        }
        let all = tracked(&instance);
        assert_eq!(State::of([&all[0].end, &all[1].end]), State::Out(accel_pass::ACCEL_RCVLOWAT));
        Ok(())
    });
}
