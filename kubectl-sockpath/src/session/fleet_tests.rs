use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use std::time::Duration;

use super::*;
use crate::interrupt::Interrupt;
use crate::session::error::RELEASE;
use crate::session::{Aftermath, Patience, Reopened, Transport};
use sockpath_protocol::message::{End, Hello};
use sockpath_protocol::{HEARTBEAT_TIMEOUT_MS, PROTOCOL_VERSION};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, split};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

struct Noted(Arc<Mutex<Vec<Ending>>>);

impl Keeper for Noted {
    fn end(self: Box<Self>, how: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
        self.0.lock().unwrap().push(how);
        Box::pin(async { Aftermath { cause: "killed by signal 9".to_owned(), stderr: "error: oops\n".to_owned() } })
    }
}

fn pair(node: &str) -> (Transport, DuplexStream, Arc<Mutex<Vec<Ending>>>) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (reader, writer) = split(ours);
    let endings = Arc::new(Mutex::new(Vec::new()));
    let keeper = Box::new(Noted(endings.clone()));
    (Transport { nodes: vec![node.to_owned()], reader: Box::new(reader), writer: Box::new(writer), keeper }, theirs, endings)
}

fn hello(protocol: u32) -> Message {
    Message::Hello(Hello {
        protocol,
        version: "9".to_owned(),
        kernel: "6.18".to_owned(),
        arch: "x86_64".to_owned(),
        boot: String::new(),
        features: Default::default(),
        test_switches: false,
        monotonic_ns: 1,
        realtime_ns: 2,
    })
}

async fn say(to: &mut DuplexStream, message: &Message) {
    let mut line = serde_json::to_vec(message).unwrap();
    line.push(b'\n');
    to.write_all(&line).await.unwrap();
}

/// Has the fleet wait for a helper whose stream comes with `transport`.
fn expect(fleet: &mut Fleet, node: &str, transport: impl Future<Output = Transport> + Send + 'static) -> usize {
    let phase = Box::new(|| Some("pulling the image".to_owned()));
    fleet.expect(
        vec![node.to_owned()],
        phase,
        |mailbox| async move { Ready::handshake(transport.await, Duration::from_secs(1), mailbox).await },
    )
}

/// A fleet whose helpers on these nodes have joined.
async fn fleet_of<const N: usize>(nodes: [&str; N]) -> (Fleet, [DuplexStream; N], [Arc<Mutex<Vec<Ending>>>; N]) {
    let mut fleet = Fleet::default();
    let far = nodes.map(|node| {
        let (transport, theirs, noted) = pair(node);
        expect(&mut fleet, node, std::future::ready(transport));
        (theirs, noted)
    });
    let (mut streams, mut endings) = (Vec::new(), Vec::new());
    for (mut theirs, noted) in far {
        say(&mut theirs, &hello(PROTOCOL_VERSION)).await;
        streams.push(theirs);
        endings.push(noted);
    }
    for _ in nodes {
        assert!(matches!(fleet.next().await, Some((_, Event::Joined(_)))));
    }
    let array = "as many as nodes";
    (fleet, streams.try_into().expect(array), endings.try_into().expect(array))
}

#[tokio::test]
async fn two_helpers_are_merged_and_ended_in_order() {
    let (mut fleet, mut far, endings) = fleet_of(["a", "b"]).await;
    say(&mut far[1], &Message::Warning { text: "w".to_owned() }).await;
    let (index, event) = fleet.next().await.unwrap();
    assert_eq!(index, 1);
    assert!(matches!(event, Event::Said(m) if *m == Message::Warning { text: "w".to_owned() }));
    for theirs in &mut far {
        say(theirs, &Message::End(End { reason: EndReason::Finished })).await;
    }
    let mut ended = Vec::new();
    fleet.finish(&Patience::of(Duration::from_secs(1)), |i, e| ended.push((i, matches!(e, Event::Ended(EndReason::Finished))))).await;
    ended.sort_unstable();
    assert_eq!(ended, [(0, true), (1, true)]);
    assert_eq!(*endings[0].lock().unwrap(), [Ending::Done]);
    let mut said = Vec::new();
    drop(fleet);
    tokio::io::AsyncReadExt::read_to_end(&mut far[0], &mut said).await.unwrap();
    let said = String::from_utf8(said).unwrap();
    assert!(said.ends_with("{\"type\":\"finish\"}\n"), "{said}");
}

#[tokio::test]
async fn a_stream_without_end_is_reported_as_such() {
    let (mut fleet, [mut theirs], [noted]) = fleet_of(["a"]).await;
    theirs.write_all(b"{\"type\":\"warn").await.unwrap();
    drop(theirs);
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("not lost") };
    let text = error.to_string();
    assert!(text.contains("it ended early") && text.contains("killed by signal 9: oops"), "{text}");
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
    assert!(fleet.next().await.is_none());
}

/// Cleaning up takes as long as the API server does, and the caller polls other futures meanwhile.
#[tokio::test]
async fn a_loss_is_reported_though_it_is_awaited_in_pieces() {
    struct Slow;
    impl Keeper for Slow {
        fn end(self: Box<Self>, _: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Aftermath { cause: "the API server cannot be reached".to_owned(), stderr: String::new() }
            })
        }
    }
    let (mut fleet, far, _) = fleet_of(["a", "b"]).await;
    for member in &mut fleet.members {
        member.keeper = Some(Box::new(Slow));
    }
    drop(far);
    let mut events = Vec::new();
    loop {
        match timeout(Duration::from_millis(20), fleet.next()).await {
            Ok(Some((index, Event::Lost(error)))) if error.to_string().contains("cannot be reached") => events.push(index),
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) => break,
            Err(_) => assert!(!fleet.is_over(), "what was not reported is not over"),
        }
    }
    events.sort_unstable();
    assert_eq!(events, [0, 1]);
}

/// The same at the end: the time is over, but what is known is reported.
#[tokio::test]
async fn a_loss_at_the_end_is_reported_as_what_it_was() {
    let (mut fleet, [theirs], [noted]) = fleet_of(["a"]).await;
    drop(theirs);
    let mut events = Vec::new();
    fleet.finish(&Patience::of(Duration::from_secs(1)), |_, event| events.push(format!("{event:?}"))).await;
    assert!(events.len() == 1 && events[0].contains("killed by signal 9"), "{events:?}");
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
}

#[tokio::test]
async fn versions_must_match() {
    let (transport, mut theirs, _) = pair("a");
    say(&mut theirs, &hello(PROTOCOL_VERSION + 1)).await;
    let error = Ready::handshake(transport, Duration::from_secs(1), Mailbox::new().0).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("with protocol") && text.contains("use a helper of release"), "{text}");
}

#[tokio::test]
async fn another_release_with_our_protocol_is_reported() {
    let (transport, mut theirs, _) = pair("a");
    say(&mut theirs, &hello(PROTOCOL_VERSION)).await;
    let mut ready = Ready::handshake(transport, Duration::from_secs(1), Mailbox::new().0).await.unwrap();
    let text = ready.other_release(&["a".to_owned()]).unwrap();
    assert!(text.starts_with("the helper on a is release 9, this plugin is release"), "{text}");
    ready.hello.version = RELEASE.to_owned();
    assert_eq!(ready.other_release(&["a".to_owned()]), None);
    assert_eq!(ready.built_for_tests(&["a".to_owned()]), None);
    ready.hello.test_switches = true;
    assert!(ready.built_for_tests(&["a".to_owned()]).unwrap().starts_with("the helper on a is built with test switches"));
}

/// We ended it, so its exit status is not the cause.
#[tokio::test]
async fn a_silent_helper_is_reported_as_such() {
    let (transport, _theirs, noted) = pair("a");
    let error = Ready::handshake(transport, Duration::from_millis(20), Mailbox::new().0).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("does not send its first message: not within 0.02 s: oops\n") && text.contains("--helper-image"), "{text}");
    assert!(!text.contains("killed"), "{text}");
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
}

#[tokio::test]
async fn a_helper_that_does_not_end_is_killed() {
    let (mut fleet, _theirs, [noted]) = fleet_of(["a"]).await;
    let mut lost = 0;
    fleet.finish(&Patience::of(Duration::from_millis(20)), |_, e| lost += u32::from(matches!(e, Event::Lost(_)))).await;
    assert_eq!(lost, 1);
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
}

/// The end of a trace may take long on a node that is busy: detaching waits for other CPUs, rules are evaluated.
#[tokio::test(start_paused = true)]
async fn a_helper_that_ends_is_waited_for_while_it_shows_that_it_lives() {
    let patience = Patience { silence: Duration::from_secs(3), longest: Duration::from_secs(30), hurry: None };
    for (beats, ends) in [(20, true), (20, false), (100, false)] {
        let (mut fleet, [mut theirs], [noted]) = fleet_of(["a"]).await;
        let helper = tokio::spawn(async move {
            for _ in 0..beats {
                tokio::time::sleep(Duration::from_secs(1)).await;
                say(&mut theirs, &Message::Heartbeat).await;
            }
            if ends {
                say(&mut theirs, &Message::End(End { reason: EndReason::Finished })).await;
            }
            theirs
        });
        let (mut events, began) = (Vec::new(), Instant::now());
        fleet.finish(&patience, |_, event| events.push(format!("{event:?}"))).await;
        let took = began.elapsed().as_secs();
        let [event] = events.as_slice() else { panic!("{events:?}") };
        match (beats, ends) {
            (_, true) => assert!(took == 20 && event.contains("Finished"), "{took} {event}"),
            (20, false) => assert!(took == 23 && event.contains("did not end within 23 s"), "{took} {event}"),
            _ => assert!(took == 30 && event.contains("did not end within 30 s"), "{took} {event}"),
        }
        assert_eq!(*noted.lock().unwrap(), [if ends { Ending::Done } else { Ending::Kill }]);
        helper.abort();
    }
}

/// One that works answers heartbeats within seconds; one that ends is not lost for that.
#[tokio::test(start_paused = true)]
async fn a_helper_that_worked_may_be_silent_for_longer_while_it_ends() {
    let patience = Patience { silence: Duration::from_secs(10), longest: Duration::from_secs(45), hurry: None };
    let (mut fleet, [mut theirs], _) = fleet_of(["a"]).await;
    fleet.works(0);
    assert!(timeout(Duration::from_secs(3), fleet.next()).await.is_err(), "nothing comes");
    let helper = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(9)).await;
        say(&mut theirs, &Message::End(End { reason: EndReason::Finished })).await;
        theirs
    });
    let mut events = Vec::new();
    fleet.finish(&patience, |_, event| events.push(format!("{event:?}"))).await;
    assert!(events.len() == 1 && events[0].contains("Finished"), "{events:?}");
    helper.abort();
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_shortens_the_wait_for_helpers_that_end() {
    let interrupt = Interrupt::default();
    let hurry = Some((interrupt.clone(), Duration::from_secs(1)));
    let patience = Patience { silence: Duration::from_secs(30), longest: Duration::from_secs(30), hurry };
    let (mut fleet, _theirs, [noted]) = fleet_of(["a"]).await;
    let user = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(5)).await;
        interrupt.raise();
    });
    let began = Instant::now();
    fleet.finish(&patience, |_, _| {}).await;
    assert_eq!(began.elapsed().as_secs(), 6);
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
    user.await.unwrap();
}

#[tokio::test]
async fn garbage_is_quoted() {
    let (transport, mut theirs, _) = pair("a");
    theirs.write_all(b"\x1b[31mhi\n").await.unwrap();
    let error = Ready::handshake(transport, Duration::from_secs(1), Mailbox::new().0).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("the same release") && text.contains("?[31mhi"), "{text}");
}

/// The other end of a helper that starts after `delay` and answers `status` as real ones do; it ends when it hears nothing for too long.
fn started_after(fleet: &mut Fleet, node: &'static str, delay: Duration) -> tokio::task::JoinHandle<Vec<String>> {
    let (transport, theirs, _) = pair(node);
    let (began, begins) = oneshot::channel();
    expect(fleet, node, async move {
        tokio::time::sleep(delay).await;
        let _ = began.send(());
        transport
    });
    tokio::spawn(async move {
        let _ = begins.await;
        let (reader, mut writer) = split(theirs);
        let mut received = Vec::new();
        let mut line = serde_json::to_vec(&hello(PROTOCOL_VERSION)).unwrap();
        line.push(b'\n');
        writer.write_all(&line).await.unwrap();
        let mut lines = BufReader::new(reader).lines();
        loop {
            let reason = match timeout(Duration::from_millis(HEARTBEAT_TIMEOUT_MS), lines.next_line()).await {
                Err(_) => EndReason::HeartbeatMissed,
                Ok(Ok(Some(line))) => {
                    received.push(line.clone());
                    if !line.contains("finish") {
                        // As real ones say that they are alive.
                        let mut alive = serde_json::to_vec(&Message::Heartbeat).unwrap();
                        alive.push(b'\n');
                        let _ = writer.write_all(&alive).await;
                        continue;
                    }
                    EndReason::Finished
                }
                Ok(_) => EndReason::StdinClosed,
            };
            let mut line = serde_json::to_vec(&Message::End(End { reason })).unwrap();
            line.push(b'\n');
            let _ = writer.write_all(&line).await;
            return received;
        }
    })
}

/// A helper lives from its own hello on, however long another takes to start.
#[tokio::test(start_paused = true)]
async fn a_helper_that_is_ready_outlives_the_start_of_a_slow_one() {
    let mut fleet = Fleet::default();
    let quick = started_after(&mut fleet, "quick", Duration::ZERO);
    let slow = started_after(&mut fleet, "slow", Duration::from_secs(100));
    let began = Instant::now();
    assert!(matches!(fleet.next().await, Some((0, Event::Joined(_)))));
    assert!(began.elapsed() < Duration::from_millis(200), "the first is there at once: {:?}", began.elapsed());
    assert!(matches!(fleet.next().await, Some((1, Event::Joined(_)))), "and still lives when the other joins");
    assert!(began.elapsed() >= Duration::from_secs(100));
    let mut ended = Vec::new();
    fleet.finish(&Patience::of(Duration::from_secs(1)), |i, e| ended.push((i, matches!(e, Event::Ended(EndReason::Finished))))).await;
    ended.sort_unstable();
    assert_eq!(ended, [(0, true), (1, true)]);
    let heartbeats = quick.await.unwrap().iter().filter(|l| l.contains("heartbeat")).count();
    assert!(heartbeats >= 49, "{heartbeats} in 100 s");
    assert!(slow.await.unwrap().len() < 5);
}

/// Heartbeats are sent even while the fleet is not polled.
#[tokio::test(start_paused = true)]
async fn a_helper_that_is_ready_lives_while_the_command_does_something_else() {
    let mut fleet = Fleet::default();
    let quick = started_after(&mut fleet, "quick", Duration::ZERO);
    fleet.first().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!quick.is_finished());
    assert!(matches!(fleet.next().await, Some((0, Event::Joined(_)))));
}

#[tokio::test(start_paused = true)]
async fn answers_come_while_others_start_and_each_gets_its_time() {
    let mut fleet = Fleet::default();
    let helpers = [("slow", 30), ("quick", 0), ("never", 40)].map(|(node, s)| started_after(&mut fleet, node, Duration::from_secs(s)));
    fleet.expect(vec!["broken".to_owned()], Box::new(|| None), |_| async { Err(anyhow!("the image cannot be pulled")) });
    // It says hello, and nothing more.
    helpers[2].abort();
    let (silent, mut theirs, _) = pair("silent");
    say(&mut theirs, &hello(PROTOCOL_VERSION)).await;
    expect(&mut fleet, "silent", std::future::ready(silent));
    let began = Instant::now();
    let mut events = Vec::new();
    fleet
        .ask_all(&Request::Status, Duration::from_secs(10), |index, event| match event {
            Event::Ended(_) => events.push((index, began.elapsed().as_secs(), String::new())),
            Event::Lost(e) => events.push((index, began.elapsed().as_secs(), e.on("node-x"))),
            _ => {}
        })
        .await;
    // Which of two comes first at one moment is left open.
    events.sort_by_key(|(index, second, _)| (*second, *index));
    let events: Vec<(usize, u64, &str)> = events.iter().map(|(i, s, e)| (*i, *s, e.lines().next().unwrap_or_default())).collect();
    assert_eq!(events[0], (1, 0, ""), "the quick one at once: {events:?}");
    assert_eq!(events[1], (3, 0, "node node-x was skipped: the image cannot be pulled"), "{events:?}");
    assert!(events[2].0 == 4 && events[2].1 == 10 && events[2].2.contains("did not end within 10 s"), "{events:?}");
    assert_eq!(events[3], (0, 30, ""), "the slow one gets the request once it has started: {events:?}");
    assert!(events[4].0 == 2 && events[4].2.contains("was skipped") && events[4].2.contains("cannot be used"), "{events:?}");
    drop(theirs);
}

/// One cause for all is an error of the command; reported node by node it would be printed twice.
#[tokio::test(start_paused = true)]
async fn when_none_can_be_started_every_cause_is_reported_once() {
    let mut fleet = Fleet::default();
    for (node, why) in [("a", "no right"), ("b", "no right"), ("c", "no image")] {
        fleet.expect(vec![node.to_owned()], Box::new(|| None), |_| async move { Err(anyhow!(why)) });
    }
    assert_eq!(fleet.first().await.unwrap_err().to_string(), "no image\nno right");
}

#[tokio::test(start_paused = true)]
async fn a_helper_that_did_not_start_is_reported_with_its_phase() {
    let mut fleet = Fleet::default();
    let quick = started_after(&mut fleet, "quick", Duration::ZERO);
    let _slow = started_after(&mut fleet, "slow", Duration::from_secs(1000));
    fleet.first().await.unwrap();
    let (began, mut events) = (Instant::now(), Vec::new());
    fleet.finish(&Patience::of(Duration::from_secs(1)), |i, e| events.push((i, format!("{e:?}")))).await;
    assert!(began.elapsed() < Duration::from_secs(1), "it is not awaited: {:?}", began.elapsed());
    assert!(events.iter().any(|(i, e)| *i == 1 && e.contains("did not start before the end (pulling the image)")), "{events:?}");
    assert!(events.iter().any(|(i, e)| *i == 0 && e.contains("Ended(Finished)")), "{events:?}");
    quick.await.unwrap();
}

/// Time is simulated: it goes on when nothing else can.
#[tokio::test(start_paused = true)]
async fn a_helper_that_falls_silent_is_given_up_within_its_time() {
    let begun = Instant::now();
    let (mut fleet, [mut theirs], [noted]) = fleet_of(["a"]).await;
    say(&mut theirs, &Message::Warning { text: "w".to_owned() }).await;
    assert!(matches!(fleet.next().await, Some((0, Event::Said(_)))));
    // Half a line does not count as a message.
    theirs.write_all(b"{\"type\":").await.unwrap();
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("not lost") };
    assert!(error.to_string().starts_with("no message from it for 45 s: killed by signal 9"), "{error}");
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(45) && waited < Duration::from_secs(50), "{waited:?}");
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
    assert!(fleet.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_helper_that_says_that_it_is_alive_is_not_given_up() {
    let (mut fleet, [mut theirs], _) = fleet_of(["a"]).await;
    for _ in 0..20 {
        assert!(timeout(Duration::from_secs(30), fleet.next()).await.is_err(), "nothing to tell");
        say(&mut theirs, &Message::Heartbeat).await;
    }
    say(&mut theirs, &Message::End(End { reason: EndReason::Done })).await;
    assert!(matches!(fleet.next().await, Some((0, Event::Ended(EndReason::Done)))));
}

#[tokio::test]
async fn a_line_that_does_not_end_is_refused() {
    let (mut fleet, [theirs], _) = fleet_of(["a"]).await;
    let writer = tokio::spawn(endless(theirs));
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("not lost") };
    assert!(error.to_string().contains("a line of more than 16777216 bytes"), "{error}");
    drop(fleet);
    assert!(writer.await.unwrap() < 20 << 20, "it is not read to its end");
}

/// Writes until the other side is blocked; how much that was.
async fn endless(mut to: DuplexStream) -> usize {
    let mut written = 0;
    while to.write_all(&[b'x'; 1 << 16]).await.is_ok() {
        written += 1 << 16;
    }
    written
}

#[tokio::test]
async fn a_message_of_too_many_parts_is_refused_with_what_it_was() {
    let (mut fleet, [mut theirs], _) = fleet_of(["a"]).await;
    let hooks = (0..2000).map(|i| i.to_string()).collect();
    let armed = sockpath_protocol::message::Armed { hooks, unavailable: Default::default(), filters: Vec::new(), took_ns: 1, at_ns: 1 };
    say(&mut theirs, &Message::Armed(armed)).await;
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("not lost") };
    assert!(error.to_string().contains("the trace has 2000 hooks, at most 1024 are supported"), "{error}");
}

/// A plugin that is slow holds helpers up by the bytes that wait for it, not only by their number.
#[tokio::test]
async fn what_waits_for_the_plugin_is_bounded_in_bytes() {
    let (mut fleet, [mut theirs], _) = fleet_of(["a"]).await;
    let large = Message::Warning { text: "x".repeat(8 << 20) };
    let writer = tokio::spawn(async move {
        for _ in 0..16 {
            say(&mut theirs, &large).await;
        }
        say(&mut theirs, &Message::End(End { reason: EndReason::Done })).await;
        // Held until everything was read.
        std::future::pending::<()>().await;
    });
    // All that can be written without a reader.
    while fleet.events.len() < 3 {
        tokio::task::yield_now().await;
    }
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fleet.events.len(), 3, "32 MiB of lines with a little more than 8 MiB each");
    let mut warnings = 0;
    while let Some((_, event)) = fleet.next().await {
        warnings += u32::from(matches!(event, Event::Said(_)));
    }
    assert_eq!(warnings, 16);
    writer.abort();
}

/// A helper's pod: how it answers attempts to attach again, in turn.
struct Pod {
    answers: Vec<Reopened>,
    endings: Arc<Mutex<Vec<Ending>>>,
}

impl Keeper for Pod {
    fn end(self: Box<Self>, how: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
        self.endings.lock().unwrap().push(how);
        Box::pin(async { Aftermath { cause: "exit code 0".to_owned(), stderr: String::new() } })
    }

    fn reopen(&mut self) -> Pin<Box<dyn Future<Output = Reopened> + Send + '_>> {
        let last = self.answers.len() == 1;
        let answer = match &self.answers[0] {
            Reopened::NotYet(why) if last => Reopened::NotYet(why.clone()),
            _ => self.answers.remove(0),
        };
        Box::pin(async { answer })
    }
}

/// A fleet of one helper that works, whose pod answers like this.
async fn working(answers: Vec<Reopened>) -> (Fleet, DuplexStream, Arc<Mutex<Vec<Ending>>>) {
    let (mut fleet, [theirs], [endings]) = fleet_of(["a"]).await;
    fleet.members[0].keeper = Some(Box::new(Pod { answers, endings: endings.clone() }));
    fleet.works(0);
    (fleet, theirs, endings)
}

fn not_yet() -> Reopened {
    Reopened::NotYet("connection refused".to_owned())
}

#[tokio::test]
async fn a_session_goes_on_over_another_connection() {
    let (ours, mut again) = tokio::io::duplex(1 << 16);
    let (reader, writer) = split(ours);
    let (mut fleet, theirs, endings) = working(vec![not_yet(), Reopened::Open(Box::new(reader), Box::new(writer))]).await;
    // The rest of a line, and a message from before the request.
    again.write_all(b"tx\":5}\n").await.unwrap();
    say(&mut again, &Message::Warning { text: "missed".to_owned() }).await;
    say(&mut again, &hello(PROTOCOL_VERSION)).await;
    drop(theirs);
    assert!(matches!(fleet.next().await, Some((0, Event::Reconnected(_)))));
    say(&mut again, &Message::Warning { text: "w".to_owned() }).await;
    assert!(matches!(fleet.next().await, Some((0, Event::Said(m))) if *m == Message::Warning { text: "w".to_owned() }));
    fleet.send(0, Request::Status).await;
    let mut lines = BufReader::new(&mut again).lines();
    while lines.next_line().await.unwrap().unwrap() != "{\"type\":\"status\"}" {}
    assert_eq!(*endings.lock().unwrap(), [], "its pod is not touched");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_restored_is_reported_at_once_and_given_up() {
    let (mut fleet, theirs, endings) = working(vec![not_yet()]).await;
    let began = Instant::now();
    drop(theirs);
    let Some((0, Event::Disconnected(why))) = fleet.next().await else { panic!("it is reported") };
    assert!(why == "connection refused" && began.elapsed() < Duration::from_secs(3), "{why} after {:?}", began.elapsed());
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("it is given up") };
    let text = error.to_string();
    assert!(text.contains("was lost for 11 s") || text.contains("was lost for 12 s"), "{text}");
    assert!(text.contains("connection refused"), "{text}");
    assert_eq!(*endings.lock().unwrap(), [Ending::Kill]);
    assert!(fleet.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn silence_of_a_helper_that_works_is_a_broken_connection() {
    let (mut fleet, theirs, _) = working(vec![Reopened::Never(String::new())]).await;
    // The patience of before it worked still counts for what is being awaited.
    let mut theirs = theirs;
    say(&mut theirs, &Message::Heartbeat).await;
    let began = Instant::now();
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("it is given up") };
    assert!(error.to_string().contains("no message from it for 6 s: exit code 0"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_helper_that_has_ended_or_refuses_us_is_not_asked_again() {
    for (answer, words) in
        [("", "it ended early, its last observations are missing: exit code 0"), ("you may not attach", "you may not attach")]
    {
        let (mut fleet, theirs, _) = working(vec![not_yet(), Reopened::Never(answer.to_owned())]).await;
        drop(theirs);
        let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("it is lost") };
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[tokio::test]
async fn nothing_is_restored_when_the_command_ends() {
    let (mut fleet, theirs, endings) = working(vec![not_yet()]).await;
    drop(theirs);
    assert!(timeout(Duration::from_millis(300), fleet.next()).await.is_err(), "it is being restored");
    let (began, mut lost) = (Instant::now(), 0);
    fleet.finish(&Patience::of(Duration::from_secs(10)), |_, e| lost += u32::from(matches!(e, Event::Lost(_)))).await;
    assert!(lost == 1 && began.elapsed() < Duration::from_secs(5), "{lost} after {:?}", began.elapsed());
    assert_eq!(*endings.lock().unwrap(), [Ending::Kill]);
}

#[tokio::test]
async fn a_helper_that_received_nothing_did_not_end_in_order() {
    for reason in [EndReason::HeartbeatMissed, EndReason::StdinClosed] {
        let (mut fleet, [mut theirs], _) = fleet_of(["a"]).await;
        say(&mut theirs, &Message::End(End { reason })).await;
        let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("it is lost") };
        assert!(error.to_string().starts_with("it received nothing from this plugin for 10 s and ended"), "{error}");
    }
}

/// What containerd cannot deliver to a helper that has ended costs the helper's last lines.
#[tokio::test(start_paused = true)]
async fn nothing_is_written_after_finish() {
    let (mut fleet, [mut theirs], _) = fleet_of(["a"]).await;
    fleet.finish(&Patience::of(Duration::from_secs(9)), |_, _| {}).await;
    drop(fleet);
    let mut said = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut theirs, &mut said).await.unwrap();
    assert!(said.ends_with("{\"type\":\"finish\"}\n"), "{said}");
}
