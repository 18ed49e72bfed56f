//! A server in one pod, clients in another, and acceleration that goes on and off meanwhile.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sockpath_protocol::accel::Via;
use sockpath_tests::lab::Lab;
use sockpath_tests::polled::Polled;
use sockpath_tests::services::{Program, Service};
use sockpath_tests::torture::accelerator::{Accelerator, Choice};
use sockpath_tests::torture::controller::forward_service_ports;
use sockpath_tests::torture::prng::Prng;

/// How long clients of our own go on.
pub const LOAD: Duration = Duration::from_secs(4);
/// A load is repeated at most so often until acceleration has carried something.
pub const LOADS: usize = 6;

/// A server in httpbin, clients in curl.
pub struct Stage {
    // The servers first: they have to be gone before the lab is.
    pub server: Service,
    _upstream: Option<Service>,
    pub lab: Lab,
    pub service: IpAddr,
    pub pod: IpAddr,
}

/// A lab with a server, where this machine can run it; a proxy gets its upstream in the client's pod.
pub fn stage(test: &str, program: Program) -> Option<Stage> {
    if !sockpath_tests::root_or_skip(test) {
        return None;
    }
    if let Some(why) = program.upstream().into_iter().chain([program]).find_map(Program::missing) {
        sockpath_tests::skipped(test, &why);
        return None;
    }
    let lab = Lab::up();
    let status = lab.status();
    forward_service_ports(&lab, &status).expect("Service rules");
    let v4 = |ips: &[IpAddr]| ips.iter().copied().find(IpAddr::is_ipv4).expect("no IPv4 address");
    let service = v4(&status.services.iter().find(|s| s.name == "httpbin").expect("no Service httpbin").cluster_ips);
    let pod = v4(&lab.pod("httpbin").ips);
    let behind = program.upstream().map(|upstream| {
        let running = Service::start(&lab, "curl", upstream).expect("the upstream does not start");
        (running, SocketAddr::new(v4(&lab.pod("curl").ips), upstream.port()))
    });
    let server = Service::start_before(&lab, "httpbin", program, behind.as_ref().map(|(_, at)| *at)).expect("the server does not start");
    Some(Stage { server, _upstream: behind.map(|(running, _)| running), lab, service, pod })
}

/// Runs `load` over each of these paths, in a lab of its own, while acceleration by it goes on and off.
pub fn over(paths: &[Via], test: &str, program: Program, load: impl Fn(&Stage)) {
    for via in paths {
        let Some(stage) = stage(test, program) else { return };
        stage.toggled(*via, || load(&stage));
    }
}

impl Stage {
    /// Runs `work` while acceleration goes on and off, again until it has carried something, which it has to.
    pub fn toggled<T>(&self, via: Via, work: impl Fn() -> T) -> T {
        let (result, carried) = self.under_acceleration(via, LOADS, work);
        assert!(carried > 0, "nothing went by the path {via:?}");
        result
    }

    /// Runs `work` while acceleration goes on and off: until that has carried something, or `most` times. Also the number of messages
    /// or, on the short path, packets that were carried.
    pub fn under_acceleration<T>(&self, via: Via, most: usize, work: impl Fn() -> T) -> (T, u64) {
        let over = AtomicBool::new(false);
        let carried = AtomicU64::new(0);
        let choice = Choice { via, ..Choice::default() };
        std::thread::scope(|scope| {
            let toggler = scope.spawn(|| {
                let (mut rng, mut times) = (Prng::new(1, 1), 0);
                while !over.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(rng.between(20, 300)));
                    let on = Accelerator::start_with(&self.lab, &choice).expect("acceleration does not start");
                    std::thread::sleep(Duration::from_millis(rng.between(200, 1_200)));
                    let totals = on.finish().expect("acceleration does not end").totals;
                    let units = if via == Via::Short { totals.by_path.short.units } else { totals.bypassed_messages };
                    carried.fetch_add(units, Ordering::AcqRel);
                    times += 1;
                }
                times
            });
            // How soon a pair is eligible depends on when its readers were seen; a load may be over before.
            let until_carried = || {
                let mut result = work();
                for _ in 1..most {
                    if carried.load(Ordering::Acquire) > 0 {
                        break;
                    }
                    result = work();
                }
                result
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(until_carried));
            over.store(true, Ordering::Release);
            let toggled = toggler.join();
            let result = result.unwrap_or_else(|e| std::panic::resume_unwind(e));
            let times = toggled.unwrap_or_else(|e| std::panic::resume_unwind(e));
            let units = carried.load(Ordering::Acquire);
            eprintln!("acceleration by {via:?} was on {times} times and carried {units} messages or packets");
            assert!(times > 0, "acceleration was never on");
            (result, units)
        })
    }

    /// Runs a client in curl; it has to succeed within a generous time.
    pub fn client(&self, command: &str) -> String {
        let words = ["timeout", "60"].into_iter().chain(command.split_whitespace());
        let out = self.lab.exec("curl", words).output().expect("cannot run a client");
        text_of(command, &out)
    }

    /// The bytes that curl(1) gets from these addresses over one connection.
    pub fn downloaded(&self, urls: &[&str]) -> Vec<u8> {
        let words = ["curl", "-sS", "--max-time", "60"].into_iter().chain(urls.iter().copied());
        let out = self.lab.exec("curl", words).output().expect("curl");
        assert!(out.status.success(), "curl: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    }

    /// A connection from curl whose user waits in poll(2).
    pub fn connect(&self, to: SocketAddr) -> Polled<TcpStream> {
        let stream = self.connect_blocking(to);
        stream.set_nonblocking(true).expect("O_NONBLOCK");
        Polled(stream)
    }

    /// A connection from curl.
    pub fn connect_blocking(&self, to: SocketAddr) -> TcpStream {
        self.lab.inside("curl", || TcpStream::connect(to)).expect("connect")
    }
}

/// What a command printed, which has to have succeeded.
pub fn text_of(command: &str, out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{command} failed with {}: {text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    text
}
