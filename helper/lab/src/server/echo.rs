//! Echo on TCP and UDP.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UdpSocket};

/// Most bytes that are taken from a connection at once.
const CHUNK: usize = 256 << 10;

thread_local! {
    /// One buffer for all connections: thousands of idle ones cost nothing, and a busy one has a large one.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Sends back what comes, `first` to begin with, until the client has finished sending; then finishes too.
pub async fn stream(mut stream: TcpStream, first: Vec<u8>) -> io::Result<()> {
    stream.write_all(&first).await?;
    drop(first);
    loop {
        match poll_fn(|cx| turn(&mut stream, cx)).await? {
            Turn::Done => {}
            Turn::Rest(rest) => stream.write_all(&rest).await?,
            Turn::End => return stream.shutdown().await,
        }
    }
}

enum Turn {
    /// Read and written.
    Done,
    /// Read; this is what the client's window did not take.
    Rest(Vec<u8>),
    /// The client has finished sending.
    End,
}

/// One read and one write on the shared buffer, which is free again when this returns.
fn turn(stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<Turn>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
        let read = buffer.filled();
        if read.is_empty() {
            return Poll::Ready(Ok(Turn::End));
        }
        let written = match stream.try_write(read) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Poll::Ready(Err(e)),
        };
        Poll::Ready(Ok(if written == read.len() { Turn::Done } else { Turn::Rest(read[written..].to_vec()) }))
    })
}

/// Sends every datagram back to where it came from.
pub async fn datagrams(socket: UdpSocket) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        // An error here is an ICMP error about an earlier answer: not about the socket.
        if let Ok((n, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..n], from).await;
        }
    }
}
