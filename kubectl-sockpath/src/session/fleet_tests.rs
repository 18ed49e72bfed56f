use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use super::*;
use sockpath_protocol::message::End;
use tokio::io::{AsyncWriteExt, DuplexStream, split};

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

/// A helper that has said hello.
async fn greeted(node: &str) -> (Ready, DuplexStream, Arc<Mutex<Vec<Ending>>>) {
    let (transport, mut theirs, noted) = pair(node);
    say(&mut theirs, &hello(PROTOCOL_VERSION)).await;
    (Ready::handshake(transport, Duration::from_secs(1)).await.unwrap(), theirs, noted)
}

#[tokio::test]
async fn two_helpers_are_merged_and_ended_in_order() {
    let mut fleet = Fleet::default();
    let mut far = Vec::new();
    let mut endings = Vec::new();
    for node in ["a", "b"] {
        let (ready, theirs, noted) = greeted(node).await;
        fleet.join(ready);
        far.push(theirs);
        endings.push(noted);
    }
    say(&mut far[1], &Message::Warning { text: "w".to_owned() }).await;
    let (index, event) = fleet.next().await.unwrap();
    assert_eq!(index, 1);
    assert!(matches!(event, Event::Said(m) if *m == Message::Warning { text: "w".to_owned() }));
    for theirs in &mut far {
        say(theirs, &Message::End(End { reason: EndReason::Finished })).await;
    }
    let mut ended = Vec::new();
    fleet.finish(Duration::from_secs(1), |i, e| ended.push((i, matches!(e, Event::Ended(EndReason::Finished))))).await;
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
async fn a_stream_without_end_is_told_as_such() {
    let (ready, mut theirs, noted) = greeted("a").await;
    let mut fleet = Fleet::default();
    fleet.join(ready);
    theirs.write_all(b"{\"type\":\"warn").await.unwrap();
    drop(theirs);
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("not lost") };
    let text = error.to_string();
    assert!(text.contains("before it was done") && text.contains("killed by signal 9: oops"), "{text}");
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
    assert!(fleet.next().await.is_none());
}

/// Cleaning up takes as long as the API server does, and whoever waits for what comes next looks at other things meanwhile.
#[tokio::test]
async fn a_loss_is_told_though_it_is_waited_for_in_pieces() {
    struct Slow;
    impl Keeper for Slow {
        fn end(self: Box<Self>, _: Ending) -> Pin<Box<dyn Future<Output = Aftermath> + Send>> {
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Aftermath { cause: "the API server cannot be reached".to_owned(), stderr: String::new() }
            })
        }
    }
    let mut fleet = Fleet::default();
    for node in ["a", "b"] {
        let (mut ready, ..) = greeted(node).await;
        ready.keeper = Box::new(Slow);
        fleet.join(ready);
    }
    let mut told = Vec::new();
    loop {
        match timeout(Duration::from_millis(20), fleet.next()).await {
            Ok(Some((index, Event::Lost(error)))) if error.to_string().contains("cannot be reached") => told.push(index),
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) => break,
            Err(_) => assert!(!fleet.is_over(), "what has not been told is not over"),
        }
    }
    told.sort_unstable();
    assert_eq!(told, [0, 1]);
}

/// The same at the end: there is no more patience, but what is known is told.
#[tokio::test]
async fn a_loss_at_the_end_is_told_as_what_it_was() {
    let (ready, theirs, noted) = greeted("a").await;
    let mut fleet = Fleet::default();
    fleet.join(ready);
    drop(theirs);
    let mut told = Vec::new();
    fleet.finish(Duration::from_secs(1), |_, event| told.push(format!("{event:?}"))).await;
    assert!(told.len() == 1 && told[0].contains("killed by signal 9"), "{told:?}");
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
}

#[tokio::test]
async fn versions_must_match() {
    let (transport, mut theirs, _) = pair("a");
    say(&mut theirs, &hello(PROTOCOL_VERSION + 1)).await;
    let error = Ready::handshake(transport, Duration::from_secs(1)).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("speaks protocol") && text.contains("use a helper of release"), "{text}");
}

#[tokio::test]
async fn another_release_that_speaks_our_protocol_is_told() {
    let (mut ready, _theirs, _) = greeted("a").await;
    let text = other_releases(std::slice::from_ref(&ready)).unwrap();
    assert!(text.starts_with("the helper on a is release 9, this plugin is release"), "{text}");
    ready.hello.version = RELEASE.to_owned();
    assert_eq!(other_releases(&[ready]), None);
}

#[tokio::test]
async fn a_helper_with_test_switches_is_warned_of() {
    let (mut ready, _theirs, _) = greeted("a").await;
    assert_eq!(built_for_tests(std::slice::from_ref(&ready)), None);
    ready.hello.test_switches = true;
    let text = built_for_tests(&[ready]).unwrap();
    assert!(text.starts_with("the helper on a is built with test switches"), "{text}");
}

/// We ended it, so how it ended is no cause.
#[tokio::test]
async fn a_helper_that_says_nothing_is_told_as_such() {
    let (transport, _theirs, noted) = pair("a");
    let error = Ready::handshake(transport, Duration::from_millis(20)).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("does not say hello: not within 0.02 s: oops\n") && text.contains("--helper-image"), "{text}");
    assert!(!text.contains("killed"), "{text}");
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
}

#[tokio::test]
async fn a_helper_that_does_not_end_is_killed() {
    let (ready, _theirs, noted) = greeted("a").await;
    let mut fleet = Fleet::default();
    fleet.join(ready);
    let mut lost = 0;
    fleet.finish(Duration::from_millis(20), |_, e| lost += u32::from(matches!(e, Event::Lost(_)))).await;
    assert_eq!(lost, 1);
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
}

#[tokio::test]
async fn garbage_is_quoted() {
    let (transport, mut theirs, _) = pair("a");
    theirs.write_all(b"\x1b[31mhi\n").await.unwrap();
    let error = Ready::handshake(transport, Duration::from_secs(1)).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("one release") && text.contains("?[31mhi"), "{text}");
}

/// Time is simulated: it goes on when nothing else can.
#[tokio::test(start_paused = true)]
async fn a_helper_that_falls_silent_is_given_up_within_its_time() {
    let begun = Instant::now();
    let (ready, mut theirs, noted) = greeted("a").await;
    let mut fleet = Fleet::default();
    fleet.join(ready);
    say(&mut theirs, &Message::Warning { text: "w".to_owned() }).await;
    assert!(matches!(fleet.next().await, Some((0, Event::Said(_)))));
    // Half a line is no sign of life.
    theirs.write_all(b"{\"type\":").await.unwrap();
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("not lost") };
    assert!(error.to_string().starts_with("nothing was heard from it for 45 s: killed by signal 9"), "{error}");
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(45) && waited < Duration::from_secs(50), "{waited:?}");
    assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
    assert!(fleet.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_helper_that_says_that_it_is_alive_is_not_given_up() {
    let (ready, mut theirs, _) = greeted("a").await;
    let mut fleet = Fleet::default();
    fleet.join(ready);
    for _ in 0..20 {
        assert!(timeout(Duration::from_secs(30), fleet.next()).await.is_err(), "nothing to tell");
        say(&mut theirs, &Message::Heartbeat).await;
    }
    say(&mut theirs, &Message::End(End { reason: EndReason::Done })).await;
    assert!(matches!(fleet.next().await, Some((0, Event::Ended(EndReason::Done)))));
}

#[tokio::test]
async fn a_line_that_does_not_end_is_refused() {
    let (ready, theirs, _) = greeted("a").await;
    let mut fleet = Fleet::default();
    fleet.join(ready);
    let writer = tokio::spawn(endless(theirs));
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("not lost") };
    assert!(error.to_string().contains("a line of more than 16777216 bytes"), "{error}");
    drop(fleet);
    assert!(writer.await.unwrap() < 20 << 20, "it is not read to its end");
}

/// Writes until nobody reads; how much was.
async fn endless(mut to: DuplexStream) -> usize {
    let mut written = 0;
    while to.write_all(&[b'x'; 1 << 16]).await.is_ok() {
        written += 1 << 16;
    }
    written
}

#[tokio::test]
async fn a_message_of_too_many_parts_is_refused_with_what_it_was() {
    let (ready, mut theirs, _) = greeted("a").await;
    let mut fleet = Fleet::default();
    fleet.join(ready);
    let hooks = (0..2000).map(|i| i.to_string()).collect();
    let armed = sockpath_protocol::message::Armed { hooks, unavailable: Default::default(), filters: Vec::new(), took_ns: 1 };
    say(&mut theirs, &Message::Armed(armed)).await;
    let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("not lost") };
    assert!(error.to_string().contains("the trace has 2000 hooks, at most 1024 are taken"), "{error}");
}

/// A plugin that is slow holds helpers up by the bytes that wait for it, not only by their number.
#[tokio::test]
async fn what_waits_for_the_plugin_is_bounded_in_bytes() {
    let (ready, mut theirs, _) = greeted("a").await;
    let mut fleet = Fleet::default();
    fleet.join(ready);
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
