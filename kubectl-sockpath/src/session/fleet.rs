//! One or several helpers as one stream of events.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use sockpath_protocol::message::{EndReason, Hello};
use sockpath_protocol::{HEARTBEAT_INTERVAL_MS, Message, PROTOCOL_VERSION, Request};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use super::{Aftermath, ClockEstimate, ClockMeter, Ending, Keeper, Transport};

/// Longest line taken from a helper, in bytes; a packet with a few hundred hops stays far below.
const MAX_LINE: usize = 16 << 20;

/// Events that wait for the plugin before helpers have to wait.
const EVENTS_AHEAD: usize = 1024;

/// While clocks are compared: time between two questions, and how many answers are enough. The quickest of them counts.
const CLOCK_INTERVAL: Duration = Duration::from_millis(100);
const CLOCK_ROUND_TRIPS: u32 = 20;

/// A helper's clock, shared by who asks and who hears the answers.
type Clock = Arc<Mutex<ClockTask>>;

#[derive(Debug, Default)]
struct ClockTask {
    wanted: bool,
    meter: ClockMeter,
}

/// What comes from a helper.
#[derive(Debug)]
pub enum Event {
    /// It said something (never `hello`, `heartbeat` or `end`).
    Said(Box<Message>),
    /// It said `end`.
    Ended(EndReason),
    /// The stream is over without `end`.
    Lost(SessionError),
}

/// Why a session with a helper failed, for callers that decide on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// It was over before the helper had said hello.
    NoHello {
        /// What is known.
        detail: String,
    },
    /// The helper speaks another version of the protocol.
    Version {
        /// Version of its protocol.
        protocol: u32,
        /// Its release.
        release: String,
    },
    /// It went away without saying `end`.
    CutOff {
        /// What is known.
        detail: String,
    },
    /// It said something that is no message.
    Garbled {
        /// What was wrong with it.
        detail: String,
    },
}

impl std::fmt::Display for SessionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let with = |f: &mut std::fmt::Formatter<'_>, text: &str, detail: &str| {
            if detail.is_empty() { f.write_str(text) } else { write!(f, "{text}: {detail}") }
        };
        match self {
            Self::NoHello { detail } => with(f, "it did not start", detail),
            Self::Version { protocol, release } => write!(
                f,
                "it is release {release} and speaks protocol {protocol}, this plugin speaks protocol {PROTOCOL_VERSION}: use a helper and a plugin of the same release"
            ),
            Self::CutOff { detail } => with(f, "it went away before it was done, what it saw last is missing", detail),
            Self::Garbled { detail } => with(f, "it said something this plugin does not understand (are both of one release?)", detail),
        }
    }
}

impl std::error::Error for SessionError {}

/// A helper that has said hello.
pub struct Ready {
    nodes: Vec<String>,
    hello: Hello,
    reader: Lines,
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    keeper: Box<dyn Keeper>,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("nodes", &self.nodes).field("hello", &self.hello).finish_non_exhaustive()
    }
}

impl Ready {
    /// Waits for the helper's hello and checks that both sides speak the same protocol. Several may be awaited at once.
    ///
    /// # Errors
    /// A [`SessionError`], after the transport's keeper has cleaned up.
    pub async fn handshake(transport: Transport, patience: Duration) -> Result<Self> {
        let Transport { nodes, reader, writer, keeper } = transport;
        let mut reader = Lines::new(reader);
        let error = match timeout(patience, reader.next()).await {
            Ok(Ok(Some(Message::Hello(hello)))) if hello.protocol == PROTOCOL_VERSION => {
                return Ok(Self { nodes, hello, reader, writer, keeper });
            }
            Ok(Ok(Some(Message::Hello(hello)))) => SessionError::Version { protocol: hello.protocol, release: hello.version },
            Ok(Ok(Some(Message::Error { text, .. }))) => SessionError::NoHello { detail: text },
            Ok(Ok(Some(_))) => SessionError::Garbled { detail: "the first line was no hello".to_owned() },
            Ok(Ok(None)) => SessionError::NoHello { detail: String::new() },
            Ok(Err(detail)) => SessionError::Garbled { detail },
            Err(_) => SessionError::NoHello { detail: format!("no hello within {} s", patience.as_secs_f32()) },
        };
        let aftermath = keeper.end(Ending::Kill).await;
        let who = nodes.join(", ");
        let error = match error {
            SessionError::NoHello { detail } => SessionError::NoHello { detail: join(&detail, &aftermath) },
            other => other,
        };
        Err(anyhow::Error::new(error).context(format!("the helper on {who} cannot be used")))
    }

    /// What it said first.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }
}

/// One helper of the fleet.
pub struct Member {
    /// The nodes it serves.
    pub nodes: Vec<String>,
    /// What it said first.
    pub hello: Hello,
    requests: mpsc::Sender<Request>,
    clock: Clock,
    tasks: [JoinHandle<()>; 2],
    keeper: Option<Box<dyn Keeper>>,
    over: bool,
    /// It has said that it goes on without us.
    stays: bool,
}

impl Member {
    /// How people call it.
    #[must_use]
    pub fn name(&self) -> String {
        self.nodes.join(", ")
    }

    /// How its clock lies to ours, as far as it was measured ([`Fleet::compare_clocks`]).
    #[must_use]
    pub fn clock(&self) -> Option<ClockEstimate> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).meter.estimate()
    }

    /// Whether its stream has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("nodes", &self.nodes).field("over", &self.over).finish_non_exhaustive()
    }
}

/// Helpers that work together on one request.
#[derive(Debug)]
pub struct Fleet {
    members: Vec<Member>,
    events: mpsc::Receiver<(usize, Event)>,
    sink: mpsc::Sender<(usize, Event)>,
}

impl Default for Fleet {
    fn default() -> Self {
        let (sink, events) = mpsc::channel(EVENTS_AHEAD);
        Self { members: Vec::new(), events, sink }
    }
}

impl Fleet {
    /// Takes a helper in and starts its heartbeat; its index tags what it says.
    pub fn join(&mut self, ready: Ready) -> usize {
        let index = self.members.len();
        let (requests, inbox) = mpsc::channel(16);
        let clock = Clock::default();
        let tasks = [
            tokio::spawn(listen(index, ready.reader, self.sink.clone(), clock.clone())),
            tokio::spawn(talk(ready.writer, inbox, clock.clone(), Duration::from_millis(HEARTBEAT_INTERVAL_MS))),
        ];
        self.members.push(Member {
            nodes: ready.nodes,
            hello: ready.hello,
            requests,
            clock,
            tasks,
            keeper: Some(ready.keeper),
            over: false,
            stays: false,
        });
        index
    }

    /// The helpers.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether all streams have ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.members.iter().all(|m| m.over)
    }

    /// Begins to compare the clocks of all nodes with ours, where there are several.
    pub fn compare_clocks(&self) {
        if self.members.len() > 1 {
            for member in &self.members {
                member.clock.lock().unwrap_or_else(PoisonError::into_inner).wanted = true;
            }
        }
    }

    /// Asks one helper for something. A helper that has gone is noticed through [`Fleet::next`], not here.
    pub async fn send(&self, index: usize, request: Request) {
        if let Some(member) = self.members.get(index).filter(|m| !m.over) {
            let _ = member.requests.send(request).await;
        }
    }

    /// Asks every helper for the same.
    pub async fn send_all(&self, request: &Request) {
        for index in 0..self.members.len() {
            self.send(index, request.clone()).await;
        }
    }

    /// What comes next, and from which helper; `None` when all streams have ended. Cancel-safe except that a lost helper's
    /// aftermath may be cut short.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        if self.is_over() {
            return None;
        }
        let (index, event) = self.events.recv().await?;
        let member = self.members.get_mut(index)?;
        if let Event::Said(message) = &event {
            member.stays |= matches!(&**message, Message::Summary(summary) if summary.detached);
            return Some((index, event));
        }
        member.over = true;
        let Event::Lost(error) = event else { return Some((index, event)) };
        let aftermath = match member.keeper.take() {
            Some(keeper) => keeper.end(Ending::Kill).await,
            None => Aftermath::default(),
        };
        let error = match error {
            SessionError::CutOff { detail } => SessionError::CutOff { detail: join(&detail, &aftermath) },
            other => other,
        };
        Some((index, Event::Lost(error)))
    }

    /// Ends the session with a helper that is not heard any more; `None` when it has ended already.
    pub async fn give_up(&mut self, index: usize, why: String) -> Option<Event> {
        let member = self.members.get_mut(index).filter(|m| !m.over)?;
        member.over = true;
        for task in &member.tasks {
            task.abort();
        }
        let aftermath = match member.keeper.take() {
            Some(keeper) => keeper.end(Ending::Kill).await,
            None => Aftermath::default(),
        };
        Some(Event::Lost(SessionError::CutOff { detail: join(&why, &aftermath) }))
    }

    /// Ends all sessions in order: asks for it, hands on what is still said, and after `patience` kills who has not ended.
    /// Errors of helpers reach `on` as events like everything else.
    pub async fn finish(&mut self, patience: Duration, mut on: impl FnMut(usize, Event)) {
        self.send_all(&Request::Finish).await;
        let deadline = Instant::now() + patience;
        while let Ok(Some((index, event))) = timeout_at(deadline, self.next()).await {
            on(index, event);
        }
        for index in self.close().await {
            on(index, Event::Lost(SessionError::CutOff { detail: format!("it did not end within {} s", patience.as_secs_f32()) }));
        }
    }

    /// Cleans up behind all helpers at once; returns those that had not said `end`.
    async fn close(&mut self) -> Vec<usize> {
        let mut unfinished = Vec::new();
        let mut endings = Vec::new();
        for (index, member) in self.members.iter_mut().enumerate() {
            for task in &member.tasks {
                task.abort();
            }
            if let Some(keeper) = member.keeper.take() {
                let how = match (member.over, member.stays) {
                    (true, true) => Ending::Stay,
                    (true, false) => Ending::Done,
                    (false, _) => Ending::Kill,
                };
                endings.push(tokio::spawn(keeper.end(how)));
            }
            if !std::mem::replace(&mut member.over, true) {
                unfinished.push(index);
            }
        }
        for ending in endings {
            let _ = ending.await;
        }
        unfinished
    }
}

fn join(detail: &str, aftermath: &Aftermath) -> String {
    let stderr = aftermath.stderr.trim().trim_start_matches("error: ").replace('\n', "; ");
    [detail, &aftermath.cause, &stderr].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(": ")
}

/// Messages out of a byte stream.
struct Lines {
    reader: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    line: Vec<u8>,
}

impl Lines {
    fn new(reader: Box<dyn AsyncRead + Send + Unpin>) -> Self {
        Self { reader: BufReader::with_capacity(64 << 10, reader), line: Vec::new() }
    }

    /// The next message; `None` at the end of the stream. A half line at the end counts as cut off.
    async fn next(&mut self) -> Result<Option<Message>, String> {
        loop {
            self.line.clear();
            loop {
                let available = match self.reader.fill_buf().await {
                    Ok(b) => b,
                    Err(_) => return Ok(None),
                };
                if available.is_empty() {
                    return Ok(None);
                }
                let newline = available.iter().position(|b| *b == b'\n');
                let take = newline.map_or(available.len(), |i| i + 1);
                self.line.extend_from_slice(&available[..take]);
                self.reader.consume(take);
                if self.line.len() > MAX_LINE {
                    return Err(format!("a line of more than {MAX_LINE} bytes"));
                }
                if newline.is_some() {
                    break;
                }
            }
            let line = self.line.trim_ascii();
            if !line.is_empty() {
                return serde_json::from_slice(line).map(Some).map_err(|e| {
                    let cut = |text: &str| crate::terminal::fit(&crate::terminal::printable(text), 80, false);
                    format!("{} in `{}`", cut(&e.to_string()), cut(&String::from_utf8_lossy(line)))
                });
            }
        }
    }
}

async fn listen(index: usize, mut lines: Lines, sink: mpsc::Sender<(usize, Event)>, clock: Clock) {
    loop {
        let event = match lines.next().await {
            Ok(Some(Message::Clock(reading))) => {
                clock.lock().unwrap_or_else(PoisonError::into_inner).meter.answered(&reading);
                continue;
            }
            Ok(Some(Message::Heartbeat | Message::Hello(_))) => continue,
            Ok(Some(Message::End(end))) => Event::Ended(end.reason),
            Ok(Some(message)) => Event::Said(Box::new(message)),
            Ok(None) => Event::Lost(SessionError::CutOff { detail: String::new() }),
            Err(detail) => Event::Lost(SessionError::Garbled { detail }),
        };
        let last = !matches!(event, Event::Said(_));
        if sink.send((index, event)).await.is_err() || last {
            return;
        }
    }
}

/// Writes requests and, in between, heartbeats; ends when the helper's stdin is gone or nobody asks any more.
async fn talk(mut writer: Box<dyn AsyncWrite + Send + Unpin>, mut inbox: mpsc::Receiver<Request>, clock: Clock, beat: Duration) {
    let mut ticks = interval(beat);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut questions = interval(CLOCK_INTERVAL);
    questions.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let request = tokio::select! {
            biased;
            request = inbox.recv() => match request {
                Some(request) => request,
                None => return,
            },
            _ = ticks.tick() => Request::Heartbeat,
            _ = questions.tick() => {
                let mut clock = clock.lock().unwrap_or_else(PoisonError::into_inner);
                if !clock.wanted || clock.meter.estimate().is_some_and(|e| e.round_trips >= CLOCK_ROUND_TRIPS) {
                    continue;
                }
                Request::Clock { id: clock.meter.ask() }
            }
        };
        if write(&mut writer, &request).await.is_err() {
            return;
        }
    }
}

async fn write(writer: &mut (dyn AsyncWrite + Send + Unpin), request: &Request) -> Result<()> {
    let mut line = serde_json::to_vec(request).context("cannot encode a request")?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};

    use super::*;
    use sockpath_protocol::message::End;
    use tokio::io::{DuplexStream, split};

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
            monotonic_ns: 1,
            realtime_ns: 2,
        })
    }

    async fn say(to: &mut DuplexStream, message: &Message) {
        let mut line = serde_json::to_vec(message).unwrap();
        line.push(b'\n');
        to.write_all(&line).await.unwrap();
    }

    #[tokio::test]
    async fn two_helpers_are_merged_and_ended_in_order() {
        let mut fleet = Fleet::default();
        let mut far = Vec::new();
        let mut endings = Vec::new();
        for node in ["a", "b"] {
            let (transport, mut theirs, noted) = pair(node);
            say(&mut theirs, &hello(PROTOCOL_VERSION)).await;
            fleet.join(Ready::handshake(transport, Duration::from_secs(1)).await.unwrap());
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
        let (transport, mut theirs, noted) = pair("a");
        say(&mut theirs, &hello(PROTOCOL_VERSION)).await;
        let mut fleet = Fleet::default();
        fleet.join(Ready::handshake(transport, Duration::from_secs(1)).await.unwrap());
        theirs.write_all(b"{\"type\":\"warn").await.unwrap();
        drop(theirs);
        let Some((0, Event::Lost(error))) = fleet.next().await else { panic!("not lost") };
        let text = error.to_string();
        assert!(text.contains("before it was done") && text.contains("killed by signal 9: oops"), "{text}");
        assert_eq!(*noted.lock().unwrap(), [Ending::Kill]);
        assert!(fleet.next().await.is_none());
    }

    #[tokio::test]
    async fn versions_must_match() {
        let (transport, mut theirs, _) = pair("a");
        say(&mut theirs, &hello(PROTOCOL_VERSION + 1)).await;
        let error = Ready::handshake(transport, Duration::from_secs(1)).await.unwrap_err();
        assert!(format!("{error:#}").contains("the same release"), "{error:#}");
    }

    #[tokio::test]
    async fn a_helper_that_does_not_end_is_killed() {
        let (transport, mut theirs, noted) = pair("a");
        say(&mut theirs, &hello(PROTOCOL_VERSION)).await;
        let mut fleet = Fleet::default();
        fleet.join(Ready::handshake(transport, Duration::from_secs(1)).await.unwrap());
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
}
