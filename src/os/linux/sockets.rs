//! Local sockets by name, also under paths longer than the 107 bytes that an address can hold: those go by way of /proc/self/fd.
use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::{
    socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket,
        sockopt::PeerCredentials,
    },
    stat::{Mode, fchmod},
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
    by_address(path, |address| {
        Ok(bind(listener.as_raw_fd(), &UnixAddr::new(address)?)?)
    })?;
    listen(&listener, Backlog::new(128)?)?;
    Ok(listener.into())
}

pub fn connect_local(path: &Path) -> io::Result<UnixStream> {
    by_address(path, |address| UnixStream::connect(address))
}

fn by_address<T>(path: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() <= LONGEST {
        return with(path);
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return with(path);
    };
    let dir = File::open(dir)?;
    with(&PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
}

/// The user at the other end of a local connection, as the kernel knows it.
pub fn peer_uid(stream: &impl AsFd) -> io::Result<u32> {
    Ok(getsockopt(stream, PeerCredentials)?.uid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
            let _client = connect_local(&path).unwrap();
            let (server, _) = listener.accept().unwrap();
            assert_eq!(peer_uid(&server).unwrap(), super::super::user_id());
        }
        let file = dir.path().join("letter");
        std::fs::write(&file, "dear").unwrap();
        assert!(bind_private(&file).is_err(), "what is no socket is not removed");
        assert!(file.exists());
    }
}
