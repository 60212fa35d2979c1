//! Local sockets by name, also under paths longer than the 107 bytes that an address can hold: those go by way of /proc/self/fd.
use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::{fs::FileTypeExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use nix::sys::{
    socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
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
}
