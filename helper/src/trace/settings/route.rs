//! Routes that refuse packets, forwarding that is off, and sources that are not accepted.

use std::io;
use std::net::IpAddr;

use sockpath_kernel::link;
use sockpath_kernel::netlink::Socket;
use sockpath_kernel::route::{self, Refusal, Refusing};
use sockpath_kernel::{address, route::Route};
use sockpath_protocol::packet::Mechanism;

use super::drop::{Finding, KernelDrop};
use super::sysctl::{self, family};

/// What a lookup of the route says.
#[derive(Debug)]
struct Refused {
    /// The lookup's errno; 0 when there is a route.
    errno: i32,
    /// Routes that refuse such packets, the most specific first.
    routes: Vec<Refusing>,
    /// Whether the device forwards; `None` where that does not matter.
    forwards: Option<(String, bool)>,
}

/// Why no packets go to this destination.
pub(super) fn refused(socket: &mut Socket, drop: &KernelDrop) -> Option<Finding> {
    let to = drop.flow.to.ip();
    let device = drop.device.as_ref().map(|(_, name)| name.clone());
    let forwards = device.and_then(|name| {
        let on = sysctl::number(&format!("{}/conf/{name}/forwarding", family(to)))?;
        Some((name, on != 0))
    });
    explain(to, &lookup(socket, to, forwards.filter(|_| drop.reason != "IP_OUTNOROUTES")))
}

/// Why a socket of this namespace cannot send to a destination, by the errno it got.
#[must_use]
pub(super) fn of_errno(to: IpAddr, errno: i32) -> Option<Finding> {
    let mut socket = Socket::open(sockpath_kernel::netlink::NETLINK_ROUTE).ok()?;
    let found = lookup(&mut socket, to, None);
    (found.errno == errno).then(|| explain(to, &found)).flatten()
}

fn lookup(socket: &mut Socket, to: IpAddr, forwards: Option<(String, bool)>) -> Refused {
    let errno = route::output(socket, to).err().map_or(0, |e: io::Error| e.raw_os_error().unwrap_or(libc::EIO));
    Refused { errno, routes: route::refusing(socket, to).unwrap_or_default(), forwards }
}

fn explain(to: IpAddr, found: &Refused) -> Option<Finding> {
    if let Some((device, false)) = &found.forwards {
        let sysctl = format!("net.{}.conf.{device}.forwarding", family(to));
        return Some(Finding {
            mechanism: Mechanism::ForwardingOff,
            detail: format!("IP forwarding is off for what comes in by {device}"),
            evidence: vec![format!("{sysctl} = 0")],
        });
    }
    let of_kind = |errno: i32| found.routes.iter().find(|r| r.how.errno() == errno);
    let refusal = [Refusal::Blackhole, Refusal::Unreachable, Refusal::Prohibit].into_iter().find(|r| r.errno() == found.errno);
    let (mechanism, detail) = match (refusal, of_kind(found.errno)) {
        (Some(_), Some(r)) => (Mechanism::RefusingRoute, format!("by the route `{r}` of table {}", table(r.table))),
        (Some(refusal), None) => (Mechanism::RefusingRoute, format!("by a rule of policy routing that says {}", refusal.word())),
        (None, _) if found.errno == libc::ENETUNREACH => (Mechanism::NoRoute, format!("there is no route to {to}")),
        _ => return None,
    };
    let evidence = vec![format!("a lookup of the route to {to} fails with {}", nix::errno::Errno::from_raw(found.errno))];
    Some(Finding { mechanism, detail, evidence })
}

fn table(number: u32) -> String {
    match number {
        254 => "main".to_owned(),
        253 => "default".to_owned(),
        255 => "local".to_owned(),
        number => number.to_string(),
    }
}

/// The filter that requires the return route to lead through the device that a packet came in by.
pub(super) fn reverse_path(socket: &mut Socket, drop: &KernelDrop) -> Option<Finding> {
    let (_, device) = drop.device.as_ref()?;
    let from = drop.flow.from.ip();
    let all = sysctl::number("ipv4/conf/all/rp_filter").unwrap_or(0);
    let own = sysctl::number(&format!("ipv4/conf/{device}/rp_filter")).unwrap_or(0);
    let back = match route::output(socket, from) {
        Ok(Route { device, .. }) => format!("packets to {from} leave by {}", link::name(socket, device)),
        Err(_) => {
            let refusing = route::refusing(socket, from).unwrap_or_default();
            let why = refusing.first().map_or_else(String::new, |r| format!(": {r}"));
            format!("there is no route back to {from}{why}")
        }
    };
    Some(Finding {
        mechanism: Mechanism::ReversePath,
        detail: format!("it came in by {device}, but {back}"),
        evidence: vec![format!("net.ipv4.conf.all.rp_filter = {all}, net.ipv4.conf.{device}.rp_filter = {own}: the larger one counts")],
    })
}

/// A source that cannot come from outside.
pub(super) fn martian(socket: &mut Socket, drop: &KernelDrop) -> Option<Finding> {
    let from = drop.flow.from.ip();
    let own = address::list(socket).unwrap_or_default().into_iter().find(|(_, ip)| *ip == from);
    let (detail, evidence) = match own {
        Some((index, _)) => {
            let device = link::name(socket, index);
            (format!("its source {from} is an address of this namespace, too"), vec![format!("{from} is an address of {device} here")])
        }
        None => (format!("its source {from} is not an address that a packet may come from"), Vec::new()),
    };
    Some(Finding { mechanism: Mechanism::Martian, detail, evidence })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to() -> IpAddr {
        [10, 42, 2, 2].into()
    }

    fn found(errno: i32, routes: Vec<Refusing>, forwards: Option<bool>) -> Option<(Mechanism, String)> {
        let refused = Refused { errno, routes, forwards: forwards.map(|on| ("veth1".to_owned(), on)) };
        explain(to(), &refused).map(|f| (f.mechanism, f.detail))
    }

    #[test]
    fn the_route_that_refuses_is_named() {
        let route = |how, length| Refusing { how, prefix: [10, 42, 2, 0].into(), length, table: 254 };
        let routes = || vec![route(Refusal::Unreachable, 28), route(Refusal::Blackhole, 24)];
        assert_eq!(
            found(libc::EINVAL, routes(), Some(true)),
            Some((Mechanism::RefusingRoute, "by the route `blackhole 10.42.2.0/24` of table main".to_owned()))
        );
        assert_eq!(found(libc::EACCES, routes(), None).map(|f| f.1), Some("by a rule of policy routing that says prohibit".to_owned()));
        assert_eq!(found(libc::ENETUNREACH, routes(), None).map(|f| f.0), Some(Mechanism::NoRoute));
        assert_eq!(found(0, routes(), Some(true)), None, "there is a route");
    }

    #[test]
    fn forwarding_that_is_off_comes_first() {
        assert_eq!(found(0, Vec::new(), Some(false)).map(|f| f.0), Some(Mechanism::ForwardingOff));
    }
}
