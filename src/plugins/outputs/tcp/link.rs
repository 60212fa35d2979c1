//! One connection: what the kernel has taken of what was sent, and how far the peer's kernel has acknowledged it. Never blocks but
//! in `wait`.
use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use rustls::ClientConnection;

use crate::{
    os,
    plugins::{outputs::said, tls},
};

/// The contents of one TLS record, at most.
const RECORD: usize = 16 * 1024;
/// So much is encrypted before the kernel is asked to take it.
const ENCRYPTED: usize = 256 * 1024;
/// A peer that has much to say is not listened to for ever: what it says means nothing here.
const MOST_READS: usize = 16;

pub struct Link {
    socket: TcpStream,
    /// `host:port`, and the address if that is not the same.
    peer: String,
    /// Bytes that the kernel has taken, a TLS handshake's included.
    wire: u64,
    tls: Option<Box<Session>>,
}
struct Session {
    tls: ClientConnection,
    /// Encrypted; the kernel has taken the first `gone` bytes of it.
    out: Vec<u8>,
    gone: usize,
    /// Of each record that is not acknowledged: where it ends on the wire, and in what was handed over.
    records: VecDeque<(u64, u64)>,
    /// Where on the wire all that was encrypted so far ends.
    encrypted: u64,
    /// Bytes that were handed over.
    taken: u64,
    acknowledged: u64,
}
#[derive(Clone, Copy)]
pub struct Ready {
    pub room: bool,
    /// The peer has said something, or has left.
    pub news: bool,
}
impl Ready {
    pub fn any(self) -> bool {
        self.room || self.news
    }
}

impl Link {
    pub fn plain(socket: TcpStream, peer: String) -> io::Result<Self> {
        Self::new(socket, peer, None, 0)
    }
    /// After the handshake, which wrote so many bytes.
    pub fn encrypted(socket: TcpStream, peer: String, mut tls: ClientConnection, wire: u64) -> io::Result<Self> {
        tls.set_buffer_limit(None); // bounded here, by RECORD
        let session = Session {
            tls,
            out: Vec::new(),
            gone: 0,
            records: VecDeque::new(),
            encrypted: wire,
            taken: 0,
            acknowledged: 0,
        };
        Self::new(socket, peer, Some(Box::new(session)), wire)
    }
    fn new(socket: TcpStream, peer: String, tls: Option<Box<Session>>, wire: u64) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            peer,
            wire,
            tls,
        })
    }
    pub fn peer(&self) -> &str {
        &self.peer
    }
    pub fn about_tls(&self) -> String {
        self.tls
            .as_ref()
            .map_or_else(|| "none".into(), |session| tls::about(&session.tls))
    }

    /// How many bytes were handed over so far.
    pub fn taken(&self) -> u64 {
        self.tls.as_ref().map_or(self.wire, |session| session.taken)
    }
    pub fn is_unused(&self) -> bool {
        self.taken() == 0
    }
    /// Takes as much as goes without waiting; `WouldBlock` if that is nothing.
    pub fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(session) = &mut self.tls else {
            let taken = retried(|| (&self.socket).write_vectored(slices))?;
            self.wire += taken as u64;
            return match taken {
                0 => Err(io::ErrorKind::WriteZero.into()),
                taken => Ok(taken),
            };
        };
        session.flush(&self.socket, &mut self.wire)?;
        let before = session.taken;
        'full: for slice in slices {
            for record in slice.chunks(RECORD) {
                if session.out.len() >= ENCRYPTED {
                    break 'full;
                }
                session.encrypt(record)?;
            }
        }
        let taken = (session.taken - before) as usize;
        // What the kernel does not take now it takes later.
        match session.flush(&self.socket, &mut self.wire) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }
    /// What was handed over and waits here for room; `WouldBlock` if some of it still does.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(session) => session.flush(&self.socket, &mut self.wire),
            None => Ok(()),
        }
    }
    /// How many of the bytes that were handed over the peer's kernel has, in records that it has whole.
    pub fn acknowledged(&mut self) -> io::Result<u64> {
        let on_wire = self.wire.saturating_sub(os::unacknowledged(&self.socket)?);
        let Some(session) = &mut self.tls else {
            return Ok(on_wire);
        };
        while let Some((_, end)) = session.records.pop_front_if(|(wire, _)| *wire <= on_wire) {
            session.acknowledged = end;
        }
        Ok(session.acknowledged)
    }
    /// Until the peer says something, or, if that is wanted, there is room.
    pub fn wait(&self, for_room: bool, time: Duration) -> io::Result<Ready> {
        let mut events = PollFlags::POLLIN; // also when it has left
        events.set(PollFlags::POLLOUT, for_room);
        let mut polled = [PollFd::new(self.socket.as_fd(), events)];
        match ppoll(&mut polled, Some(TimeSpec::from(time)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let seen = polled[0].revents().unwrap_or(PollFlags::empty());
        Ok(Ready {
            room: seen.contains(PollFlags::POLLOUT),
            news: !(seen - PollFlags::POLLOUT).is_empty(),
        })
    }
    /// Throws away what the peer has sent. The error is why the connection is of no use any more.
    pub fn look(&mut self) -> Result<(), String> {
        const LEFT: &str = "the peer has closed the connection";
        let mut thrown = [0; 4096];
        for _ in 0..MOST_READS {
            let read = match &mut self.tls {
                None => retried(|| (&self.socket).read(&mut thrown)),
                Some(session) => retried(|| session.tls.read_tls(&mut &self.socket)),
            };
            match read {
                Ok(0) => return Err(LEFT.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(said(&error)),
            }
            let Some(session) = &mut self.tls else { continue };
            let state = session.tls.process_new_packets();
            let state = state.map_err(|error| format!("TLS session ended: {}", tls::words(&error)))?;
            while matches!(session.tls.reader().read(&mut thrown), Ok(1..)) {}
            if state.peer_has_closed() {
                return Err(LEFT.into());
            }
        }
        Ok(())
    }
    /// In order: the peer sees the end behind the last event.
    pub fn close(mut self) {
        if let Some(session) = &mut self.tls {
            session.tls.send_close_notify();
            let _ = session.flush(&self.socket, &mut self.wire); // all events are acknowledged: what fails here costs nothing
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}
impl Session {
    fn encrypt(&mut self, record: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(record)?;
        self.collect()?;
        self.taken += record.len() as u64;
        self.records.push_back((self.encrypted, self.taken));
        Ok(())
    }
    /// What the session wants to send, its own messages too.
    fn collect(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.encrypted += self.tls.write_tls(&mut self.out)? as u64;
        }
        Ok(())
    }
    fn flush(&mut self, socket: &TcpStream, wire: &mut u64) -> io::Result<()> {
        self.collect()?;
        let mut socket = socket;
        while self.gone < self.out.len() {
            match retried(|| socket.write(&self.out[self.gone..]))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                taken => {
                    self.gone += taken;
                    *wire += taken as u64;
                }
            }
        }
        self.out.clear();
        self.gone = 0;
        Ok(())
    }
}

fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
