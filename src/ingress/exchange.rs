//! One request and its answer over HTTP/1.1, in the task of the client's connection.
//!
//! In: a request, a connection to a backend. Out: the answer's head, then its body as it comes.
//! Invariants: a connection is used by one exchange at a time; an answer is passed on while the
//! request's body still goes out; what has not left the board can be sent again.
//! Deliberately absent: which backend (`pool`), what heads say (`head`), what bytes mean (`wire`).

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use hyper::{
    HeaderMap, Method, StatusCode,
    body::{Body as _, Frame},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use tokio_util::io::poll_read_buf;

use super::{
    body::{BodyError, Upload},
    head,
    wire::{self, Answer, Decoder, Framing, WireError},
};

/// What is read at once (bytes): at first, and when a body fills that again and again.
const READ_BYTES: usize = 4 << 10;
const READ_BYTES_MAX: usize = 64 << 10;
/// A buffer with less room than this is enlarged (bytes).
const READ_BYTES_MIN: usize = 1 << 10;
/// Pieces of a request's body that are copied to go out together (bytes); larger ones go as they are.
const GATHERED_BYTES_MAX: usize = 8 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the request's body: {0}")]
    Body(#[source] BodyError),
    #[error("the connection ended before an answer")]
    Ended,
}

/// A connection, with or without TLS.
pub enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection to a backend, and what was read of it and not used.
pub struct Connection {
    io: Io,
    read: BytesMut,
    /// What is read at once.
    size: usize,
}

impl Connection {
    pub fn new(io: Io) -> Self {
        Self { io, read: BytesMut::new(), size: READ_BYTES }
    }

    /// Whether the backend neither ended it nor says something unasked.
    pub fn is_quiet(&mut self) -> bool {
        self.read.is_empty() && self.poll_fill(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Keeps no more than it needs while it waits.
    pub fn rest(&mut self) {
        self.size = READ_BYTES;
        if self.read.capacity() > READ_BYTES {
            self.read = BytesMut::new();
        }
    }

    /// The bytes after an answer, and the way to the backend.
    pub fn into_parts(self) -> (BytesMut, Io) {
        (self.read, self.io)
    }

    /// Reads something; 0 at the end of the connection.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read.capacity() - self.read.len() < READ_BYTES_MIN.min(self.size) {
            self.read.reserve(self.size);
        }
        let room = self.read.capacity() - self.read.len();
        let length = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read))?;
        if length == room {
            self.size = (self.size * 2).min(READ_BYTES_MAX);
        }
        Poll::Ready(Ok(length))
    }

    /// The head of the final answer (or of a switch of protocols).
    fn poll_answer(&mut self, cx: &mut Context<'_>, bare: bool) -> Poll<Result<Answer, ExchangeError>> {
        loop {
            if !self.read.is_empty()
                && let Some(answer) = wire::answer(&mut self.read, bare)?
            {
                if !answer.status.is_informational() || answer.status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok(answer));
                }
                continue;
            }
            if ready!(self.poll_fill(cx))? == 0 {
                let error = if self.read.is_empty() { ExchangeError::Ended } else { WireError::Short.into() };
                return Poll::Ready(Err(error));
            }
        }
    }
}

/// A request on its way to a backend.
pub struct Outgoing {
    head: BytesMut,
    /// The answer has a head only.
    bare: bool,
    idempotent: bool,
    framing: Option<Framing>,
    body: Option<Upload>,
    /// Of the head, in this attempt.
    written: usize,
    /// What goes out after the head: copied pieces of the body, then one as it is, then the end of its chunk.
    gathered: BytesMut,
    piece: Bytes,
    tail: &'static [u8],
    /// Bytes of the body, where its length was told, that are still to come.
    left: u64,
    /// The head has all there is, the body included.
    whole: bool,
    /// Something of the body was taken.
    begun: bool,
    /// Nothing more goes out, and everything did unless it is broken.
    done: bool,
    broken: bool,
}

impl Outgoing {
    /// A request with this head, but for what tells of its body; `told`: the client has told its length.
    pub fn new(method: &Method, mut head: BytesMut, told: bool, body: Upload) -> Self {
        let length = body.size_hint().exact();
        let empty = body.is_end_stream();
        let framing = match (empty, length) {
            (true, _) => told.then_some(Framing::Length(0)),
            (false, Some(length)) => Some(Framing::Length(length)),
            (false, None) => Some(Framing::Chunked),
        };
        wire::end_head(&mut head, framing);
        Self {
            head,
            bare: *method == Method::HEAD,
            idempotent: method.is_idempotent(),
            framing,
            body: (!empty).then_some(body),
            written: 0,
            gathered: BytesMut::new(),
            piece: Bytes::new(),
            tail: b"",
            left: length.unwrap_or(0),
            whole: empty,
            begun: false,
            done: false,
            broken: false,
        }
    }

    /// Whether it can be sent once more after a connection that had been used before broke like this.
    pub fn can_go_again(&self, error: &ExchangeError) -> bool {
        let is_lost = matches!(error, ExchangeError::Io(_) | ExchangeError::Ended);
        let is_here =
            if self.written == 0 { self.whole || !self.begun } else { self.whole && self.idempotent };
        is_lost && is_here
    }

    /// Takes a piece of the body.
    fn take(&mut self, piece: Bytes) -> Result<(), ExchangeError> {
        self.begun = true;
        if piece.is_empty() {
            return Ok(());
        }
        if self.framing == Some(Framing::Chunked) {
            self.gathered.put_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            self.tail = b"\r\n";
        } else {
            let left = self.left.checked_sub(piece.len() as u64);
            self.left = left.ok_or_else(|| wrong_length("more than was told"))?;
        }
        if self.gathered.len() + piece.len() <= GATHERED_BYTES_MAX {
            self.gathered.extend_from_slice(&piece);
            self.gathered.extend_from_slice(std::mem::take(&mut self.tail));
        } else {
            self.piece = piece;
        }
        Ok(())
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), ExchangeError> {
        self.body = None;
        self.begun = true;
        if self.framing != Some(Framing::Chunked) {
            return if self.left == 0 { Ok(()) } else { Err(wrong_length("less than was told")) };
        }
        self.gathered.extend_from_slice(b"0\r\n");
        for (name, value) in trailers.into_iter().flatten() {
            head::encode_header(&mut self.gathered, name, value);
        }
        self.gathered.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// Gathers what there is of the body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<(), ExchangeError> {
        while self.piece.is_empty() && self.gathered.len() < GATHERED_BYTES_MAX {
            let Some(body) = &mut self.body else { break };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) => self.take(piece)?,
                    Err(frame) => self.end(frame.trailers_ref())?,
                },
                Poll::Ready(Some(Err(error))) => return Err(ExchangeError::Body(error)),
                Poll::Ready(None) => self.end(None)?,
            }
        }
        Ok(())
    }

    /// Writes as much as goes; ready when there is no more.
    fn poll_send(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Poll<Result<(), ExchangeError>> {
        loop {
            self.poll_body(cx)?;
            if self.written < self.head.len() {
                if self.written == 0 && !self.gathered.is_empty() {
                    // A short body goes out with its head.
                    self.head.extend_from_slice(&self.gathered);
                    self.gathered.clear();
                    self.whole = self.body.is_none() && self.piece.is_empty();
                }
                self.written += ready!(write(io, cx, &self.head[self.written..]))?;
            } else if !self.gathered.is_empty() {
                let length = ready!(write(io, cx, &self.gathered))?;
                self.gathered.advance(length);
            } else if !self.piece.is_empty() {
                let length = ready!(write(io, cx, &self.piece))?;
                self.piece.advance(length);
                if self.piece.is_empty() {
                    self.gathered.extend_from_slice(std::mem::take(&mut self.tail));
                }
            } else {
                // TLS holds back what is written.
                ready!(Pin::new(&mut *io).poll_flush(cx))?;
                return if self.body.is_none() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    /// Goes on with sending, whether or not that comes to an end now.
    ///
    /// # Errors
    /// The body cannot be had. That the backend takes no more is no error: it may have answered.
    fn poll(&mut self, io: &mut Io, cx: &mut Context<'_>) -> Result<(), ExchangeError> {
        if self.done {
            return Ok(());
        }
        match self.poll_send(io, cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.done = true,
            Poll::Ready(Err(ExchangeError::Io(_))) => (self.done, self.broken) = (true, true),
            Poll::Ready(Err(error)) => return Err(error),
        }
        Ok(())
    }
}

fn wrong_length(what: &str) -> ExchangeError {
    ExchangeError::Body(BodyError(what.into()))
}

fn write(io: &mut Io, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    let length = ready!(Pin::new(io).poll_write(cx, bytes))?;
    Poll::Ready(if length == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(length) })
}

/// Sends a request and reads its answer's head; more of the request may be left to send.
///
/// # Errors
/// There is no answer.
pub async fn answer(connection: &mut Connection, outgoing: &mut Outgoing) -> Result<Answer, ExchangeError> {
    (outgoing.written, outgoing.done, outgoing.broken) = (0, false, false);
    poll_fn(|cx| {
        if let Err(error) = outgoing.poll(&mut connection.io, cx) {
            return Poll::Ready(Err(error));
        }
        connection.poll_answer(cx, outgoing.bare)
    })
    .await
}

/// An answer's body on its way.
pub struct Exchange {
    connection: Connection,
    /// While there is more of the request.
    outgoing: Option<Box<Outgoing>>,
    decoder: Decoder,
    keeps: bool,
}

impl Exchange {
    /// After the head of the answer.
    pub fn new(connection: Connection, outgoing: Box<Outgoing>, answer: &Answer) -> Self {
        Self {
            connection,
            keeps: answer.keeps && !outgoing.broken,
            outgoing: (!outgoing.done).then_some(outgoing),
            decoder: Decoder::new(answer.framing),
        }
    }

    pub fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// Bytes that are still to come, where that is known.
    pub fn left(&self) -> Option<u64> {
        self.decoder.left()
    }

    /// The rest of the body, when all of it has been read.
    pub fn rest(&mut self) -> Option<Bytes> {
        let left = usize::try_from(self.decoder.left()?).ok()?;
        (left <= self.connection.read.len()).then(|| {
            self.decoder = Decoder::new(Framing::Length(0));
            self.connection.read.split_to(left).freeze()
        })
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.connection.read)? {
                return Poll::Ready(Some(Ok(frame)));
            }
            if self.is_done() {
                return Poll::Ready(None);
            }
            if let Some(outgoing) = &mut self.outgoing {
                outgoing.poll(&mut self.connection.io, cx)?;
                if outgoing.done {
                    self.keeps &= !outgoing.broken;
                    self.outgoing = None;
                }
            }
            if ready!(self.connection.poll_fill(cx)).map_err(ExchangeError::from)? == 0 {
                self.keeps = false;
                self.decoder.end()?;
            }
        }
    }

    /// The connection, when it can be used again.
    pub fn into_connection(self) -> Option<Connection> {
        let Self { connection, outgoing, decoder, keeps } = self;
        let is_clean = keeps && decoder.is_done() && outgoing.is_none() && connection.read.is_empty();
        is_clean.then_some(connection)
    }
}
