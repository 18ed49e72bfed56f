//! A small HTTP/1.1 server (RFC 9112): keep-alive, pipelining, HEAD, bodies with a length.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest request head, in bytes.
const MAX_HEAD: usize = 32 << 10;
/// Longest request body, in bytes: it is held in memory to be sent back.
const MAX_BODY: usize = 64 << 20;
/// What `/bytes/N` is sent in, in bytes.
const CHUNK: usize = 64 << 10;
/// How long a first piece that could be the start of a method may stay alone before it counts as data to echo.
const UNDECIDED: Duration = Duration::from_millis(50);

/// What the first bytes of a request look like. With the start of the target, binary data rarely looks the same.
const OPENINGS: [&[u8]; 8] = [b"GET /", b"HEAD /", b"POST /", b"PUT /", b"DELETE /", b"PATCH /", b"OPTIONS /", b"OPTIONS *"];

/// What a connection speaks, after its first bytes.
#[derive(Debug, PartialEq, Eq)]
enum Opening {
    Http,
    Data,
    Undecided,
}

fn opening(bytes: &[u8]) -> Opening {
    if OPENINGS.iter().any(|o| bytes.starts_with(o)) {
        Opening::Http
    } else if OPENINGS.iter().any(|o| o.starts_with(bytes)) {
        Opening::Undecided
    } else {
        Opening::Data
    }
}

/// Reads the first bytes into `first` and says whether they are HTTP.
pub async fn detect(stream: &mut TcpStream, first: &mut Vec<u8>) -> io::Result<bool> {
    // Nothing is allocated for a connection that says nothing.
    stream.readable().await?;
    first.reserve(4096);
    let mut read = stream.read_buf(first).await?;
    loop {
        match opening(first) {
            Opening::Http => return Ok(true),
            Opening::Data => return Ok(false),
            Opening::Undecided if read == 0 => return Ok(false),
            Opening::Undecided => match tokio::time::timeout(UNDECIDED, stream.read_buf(first)).await {
                Ok(r) => read = r?,
                Err(_) => return Ok(false),
            },
        }
    }
}

/// One request's head.
#[derive(Debug, PartialEq, Eq)]
struct Head<'a> {
    method: &'a str,
    target: &'a str,
    body: Body,
    keep_alive: bool,
    /// `Expect: 100-continue`
    expects: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Body {
    Length(usize),
    /// Chunked or otherwise encoded, which this server does not take.
    Encoded,
}

/// Parses a request head without its empty line.
fn parse(head: &[u8]) -> Option<Head<'_>> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let http_1_1 = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return None,
    };
    let mut parsed = Head { method, target, body: Body::Length(0), keep_alive: http_1_1, expects: false };
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            parsed.body = Body::Length(value.parse().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            parsed.body = Body::Encoded;
        } else if name.eq_ignore_ascii_case("connection") {
            parsed.keep_alive = if http_1_1 { !value.eq_ignore_ascii_case("close") } else { value.eq_ignore_ascii_case("keep-alive") };
        } else if name.eq_ignore_ascii_case("expect") {
            parsed.expects = value.eq_ignore_ascii_case("100-continue");
        }
    }
    Some(parsed)
}

/// Serves requests until the client is done. `buffer` is what was read already, `identity` is the server's name in answers.
pub async fn serve(mut stream: TcpStream, peer: SocketAddr, mut buffer: Vec<u8>, identity: &str) -> io::Result<()> {
    let local = stream.local_addr()?;
    let about = format!("{identity}, at {} for {}\n", canonical(local), canonical(peer));
    loop {
        let Some(end) = read_head(&mut stream, &mut buffer).await? else { return Ok(()) };
        let Some(head) = parse(&buffer[..end]) else {
            return refuse(&mut stream, "400 Bad Request", "this is not HTTP/1.1\n").await;
        };
        let length = match head.body {
            Body::Length(n) if n <= MAX_BODY => n,
            Body::Length(_) => return refuse(&mut stream, "413 Content Too Large", "at most 64 MiB\n").await,
            Body::Encoded => return refuse(&mut stream, "411 Length Required", "send a Content-Length\n").await,
        };
        let (echoes, keep_alive) = (matches!(head.method, "POST" | "PUT" | "PATCH"), head.keep_alive);
        let reply = Reply::to(&head, &about);
        if head.expects {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let body_at = end + 4;
        while buffer.len() < body_at + length {
            buffer.reserve((body_at + length - buffer.len()).min(1 << 20));
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let body = &buffer[body_at..body_at + length];
        match reply {
            _ if echoes => respond(&mut stream, "200 OK", "application/octet-stream", body, true, keep_alive).await?,
            Reply::Text { status, body, with_body, delay } => {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                respond(&mut stream, status, "text/plain", body.as_bytes(), with_body, keep_alive).await?;
            }
            Reply::Bytes { count, with_body } => send_bytes(&mut stream, count, with_body, keep_alive).await?,
        }
        if !keep_alive {
            return stream.shutdown().await;
        }
        buffer.drain(..body_at + length);
    }
}

/// Reads until the head is complete; the offset of its empty line, or nothing at the end of the stream.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let mut searched = 0;
    loop {
        if let Some(at) = buffer[searched..].windows(4).position(|w| w == b"\r\n\r\n") {
            return Ok(Some(searched + at));
        }
        if buffer.len() > MAX_HEAD {
            refuse(stream, "431 Request Header Fields Too Large", "at most 32 KiB\n").await?;
            return Ok(None);
        }
        searched = buffer.len().saturating_sub(3);
        buffer.reserve(4096);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

#[derive(Debug)]
enum Reply {
    Text { status: &'static str, body: String, with_body: bool, delay: Duration },
    Bytes { count: u64, with_body: bool },
}

impl Reply {
    fn to(head: &Head<'_>, about: &str) -> Self {
        let with_body = head.method != "HEAD";
        let text = |status, body: &str, delay| Self::Text { status, body: body.to_owned(), with_body, delay };
        let path = head.target.split('?').next().unwrap_or_default();
        if let Some(count) = path.strip_prefix("/bytes/") {
            return match count.parse() {
                Ok(count) => Self::Bytes { count, with_body },
                Err(_) => text("400 Bad Request", "/bytes/N: N is a number of bytes\n", Duration::ZERO),
            };
        }
        if let Some(ms) = path.strip_prefix("/delay/") {
            return match ms.parse() {
                Ok(ms) => text("200 OK", about, Duration::from_millis(ms)),
                Err(_) => text("400 Bad Request", "/delay/MS: MS is a number of milliseconds\n", Duration::ZERO),
            };
        }
        match path {
            "/" | "*" => text("200 OK", about, Duration::ZERO),
            _ => text("404 Not Found", "use /, /bytes/N or /delay/MS; POST and PUT return the body\n", Duration::ZERO),
        }
    }
}

async fn refuse(stream: &mut TcpStream, status: &str, text: &str) -> io::Result<()> {
    respond(stream, status, "text/plain", text.as_bytes(), true, false).await?;
    stream.shutdown().await
}

async fn respond(stream: &mut TcpStream, status: &str, kind: &str, body: &[u8], with_body: bool, keep_alive: bool) -> io::Result<()> {
    let mut out = response_head(status, kind, body.len() as u64, keep_alive);
    // One write for head and body, unless the body is so long that copying it costs more.
    if with_body && body.len() <= CHUNK {
        out.extend_from_slice(body);
    }
    stream.write_all(&out).await?;
    if with_body && body.len() > CHUNK { stream.write_all(body).await } else { Ok(()) }
}

fn response_head(status: &str, kind: &str, length: u64, keep_alive: bool) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n").into_bytes()
}

/// `count` bytes of a repeating text.
async fn send_bytes(stream: &mut TcpStream, count: u64, with_body: bool, keep_alive: bool) -> io::Result<()> {
    let mut out = response_head("200 OK", "application/octet-stream", count, keep_alive);
    if !with_body {
        return stream.write_all(&out).await;
    }
    let pattern: &[u8; CHUNK] = &PATTERN;
    let piece = |left: u64| &pattern[..usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
    let first = piece(count);
    out.extend_from_slice(first);
    stream.write_all(&out).await?;
    let mut left = count - first.len() as u64;
    while left > 0 {
        let next = piece(left);
        stream.write_all(next).await?;
        left -= next.len() as u64;
    }
    Ok(())
}

/// Printable, and its period (64) divides the chunk, so the whole answer has one period.
static PATTERN: [u8; CHUNK] = {
    let mut bytes = [0; CHUNK];
    let mut i = 0;
    while i < CHUNK {
        bytes[i] = if i % 64 == 63 { b'\n' } else { b'0' + (i % 64) as u8 };
        i += 1;
    }
    bytes
};

/// IPv4 as such, not as a v4-mapped address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_recognised_by_its_first_bytes() {
        assert_eq!(opening(b"GET / HTTP/1.1\r\n"), Opening::Http);
        assert_eq!(opening(b"OPTIONS * HTTP/1.1"), Opening::Http);
        assert_eq!(opening(b"GET"), Opening::Undecided);
        assert_eq!(opening(b"P"), Opening::Undecided);
        assert_eq!(opening(b"GETX"), Opening::Data);
        assert_eq!(opening(b"GET x"), Opening::Data);
        assert_eq!(opening(&[0, 1, 2]), Opening::Data);
    }

    #[test]
    fn heads_are_read() {
        let head = parse(b"POST /x?y HTTP/1.1\r\nHost: a\r\nContent-length:  5\r\nexpect: 100-Continue").unwrap();
        assert_eq!(head, Head { method: "POST", target: "/x?y", body: Body::Length(5), keep_alive: true, expects: true });
        assert!(!parse(b"GET / HTTP/1.0").unwrap().keep_alive);
        assert!(!parse(b"GET / HTTP/1.1\r\nConnection: close").unwrap().keep_alive);
        assert_eq!(parse(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked").unwrap().body, Body::Encoded);
        for bad in [&b"GET /"[..], b"GET / HTTP/2", b"GET / HTTP/1.1\r\nnonsense", b"GET / HTTP/1.1\r\nContent-Length: -1", b"\xff"] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }
}
