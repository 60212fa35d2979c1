//! Local sockets by name, also under paths longer than the 107 bytes that an address can hold: those go by way of /proc/self/fd.
//! And what only the kernel knows of a TCP connection.
use std::{
    fs::File,
    io,
    net::TcpStream,
    os::{
        fd::AsRawFd,
        unix::{fs::FileTypeExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, setsockopt, socket, sockopt},
        stat::{Mode, fchmod},
    },
};

/// The longest path that fits into an address, without its ending zero.
const LONGEST: usize = 107;

/// Listens on a socket that only its owner can connect to, from its first moment. One that is there already is replaced: the caller
/// holds the lock which says that nobody uses it.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is not a socket is in its place",
            ));
        }
        Err(_) => {}
    }
    let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // On Linux the name gets the mode that the socket has when it is bound: no moment in which it stands open, no umask.
    fchmod(&listener, Mode::from_bits_truncate(super::PRIVATE_FILE))?;
    bind(listener.as_raw_fd(), &UnixAddr::new(LocalAddress::of(path)?.as_path())?)?;
    listen(&listener, Backlog::new(128)?)?;
    Ok(listener.into())
}

/// How a socket is named to the system, for as long as this lives.
pub struct LocalAddress {
    path: PathBuf,
    /// What a long path goes through.
    _dir: Option<File>,
}
impl LocalAddress {
    pub fn of(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidFilename.into());
        };
        if path.as_os_str().len() <= LONGEST {
            return Ok(Self {
                path: path.to_owned(),
                _dir: None,
            });
        }
        let dir = File::open(parent)?;
        Ok(Self {
            path: PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name),
            _dir: Some(dir),
        })
    }
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

/// How much of what was written to a TCP connection the peer's kernel has not acknowledged, in bytes. Also true of one that has
/// ended.
pub fn unacknowledged(socket: &TcpStream) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open as long as `socket` lives, and the kernel writes one int to where `bytes` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) }; // SIOCOUTQ by its older name
    Errno::result(result)?;
    Ok(bytes.max(0) as u64)
}

/// A TCP connection that was silent for `idle` is asked whether it still lives; after three questions without an answer, a third of
/// that apart, it has ended.
pub fn keep_alive(socket: &TcpStream, idle: Duration) -> io::Result<()> {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1);
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &seconds(idle))?;
    setsockopt(socket, sockopt::TcpKeepInterval, &seconds(idle / 3))?;
    setsockopt(socket, sockopt::TcpKeepCount, &3)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixStream};

    use super::*;

    #[test]
    fn sockets_are_private_and_replace_stale_ones_under_paths_of_any_length() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        for path in [dir.path().join("s"), deep.join("s")] {
            drop(bind_private(&path).unwrap()); // its file stays behind, as after kill -9
            let listener = bind_private(&path).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600);
            let _client = UnixStream::connect(LocalAddress::of(&path).unwrap().as_path()).unwrap();
            listener.accept().unwrap();
        }
        let file = dir.path().join("letter");
        std::fs::write(&file, "dear").unwrap();
        assert!(bind_private(&file).is_err(), "what is no socket is not removed");
        assert!(file.exists());
    }
    #[test]
    fn what_a_peer_has_not_acknowledged_is_known() {
        use std::{io::Write, net::TcpListener};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        keep_alive(&socket, Duration::from_secs(60)).unwrap();
        assert_eq!(unacknowledged(&socket).unwrap(), 0);
        // The peer takes nothing: past what its kernel holds, all waits in ours.
        socket.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(more) = socket.write(&[0; 65536]) {
            written += more as u64;
        }
        let waits = unacknowledged(&socket).unwrap();
        assert!(waits > 0 && waits < written, "{waits} of {written}");
        // It leaves: what it had not acknowledged is still known.
        drop(listener);
        let mut polled = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&socket),
            nix::poll::PollFlags::empty(),
        )];
        nix::poll::poll(&mut polled, 30_000u16).unwrap();
        let left = unacknowledged(&socket).unwrap();
        assert!(left > 0 && left <= waits, "{left} of {waits}");
    }
}
