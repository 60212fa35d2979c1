//! The two files of a key pair: `KEY` (PKCS#8 in PEM, 0600) signs, `KEY.pub` (one line) is what `[jobs] verify_key` takes.
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::SigningKey;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// No key is longer, in bytes.
const LONGEST: u64 = 16 << 10;

/// Makes both files; neither may be there. Returns the public half.
pub fn create(path: &Path) -> Result<String, String> {
    let (key, pkcs8) = SigningKey::generate()?;
    let public = key.public();
    let pem = format!("{BEGIN}\n{}\n{END}\n", BASE64_STANDARD.encode(pkcs8));
    write_new(path, &pem, 0o600)?;
    write_new(&public_path(path), &format!("{public}\n"), 0o644).inspect_err(|_| {
        let _ = std::fs::remove_file(path); // half a pair is none
    })?;
    Ok(public)
}
fn public_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    name.into()
}
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => format!("found {}, accepted: a name that is free", path.display()),
        _ => format!("could not write {}: {error}", path.display()),
    })
}

/// Reads the signing half. One that others may read is refused.
pub fn load(path: &Path) -> Result<SigningKey, String> {
    let read = || -> io::Result<(String, u32)> {
        let file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode();
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text)?;
        Ok((text, mode))
    };
    let (text, mode) = read().map_err(|error| format!("could not read the key {}: {error}", path.display()))?;
    if mode & 0o077 != 0 {
        return Err(format!(
            "found mode {:04o} at the key {}, accepted: 0600, for nobody else to read it",
            mode & 0o7777,
            path.display()
        ));
    }
    of_pem(&text).map_err(|error| format!("could not read the key {}: {error}", path.display()))
}
fn of_pem(text: &str) -> Result<SigningKey, String> {
    let inner = || text.split_once(BEGIN)?.1.split_once(END).map(|(inner, _)| inner);
    let base64 =
        inner().ok_or_else(|| format!("found no `{BEGIN}`, accepted: a key as `agent jobs keygen` makes it"))?;
    let bare = base64.split_whitespace().collect::<String>();
    let pkcs8 = BASE64_STANDARD
        .decode(bare)
        .map_err(|error| format!("found no base64 ({error})"))?;
    SigningKey::of_pkcs8(&pkcs8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let public = create(&path).unwrap();
        assert_eq!(load(&path).unwrap().public(), public);
        assert_eq!(
            std::fs::read_to_string(dir.path().join("key.pub")).unwrap(),
            format!("{public}\n")
        );
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("key"), 0o600);
        let error = create(&path).unwrap_err();
        assert!(error.ends_with("key, accepted: a name that is free"), "{error}");
        assert_eq!(load(&path).unwrap().public(), public, "it was left alone");
        // Only the public half is there: neither is written.
        std::fs::remove_file(&path).unwrap();
        assert!(create(&path).unwrap_err().contains("key.pub"));
        assert!(!path.exists());
    }
    #[test]
    fn what_is_no_key_of_ones_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let error = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            load(&path).err().unwrap()
        };
        assert!(load(&path).err().unwrap().contains("No such file"));
        assert!(error("x", 0o600).contains("found no `-----BEGIN"));
        assert!(error(&format!("{BEGIN}\n!\n{END}"), 0o600).contains("found no base64"));
        assert!(error(&format!("{BEGIN}\nAAAA\n{END}"), 0o600).contains("found no Ed25519 key"));
        assert!(error("x", 0o640).contains("found mode 0640"), "{}", error("x", 0o640));
    }
    /// As `openssl genpkey -algorithm ed25519` writes it: the example of RFC 8410.
    #[test]
    fn a_key_of_openssl() {
        let pem = format!("{BEGIN}\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n{END}\n");
        let key = of_pem(&pem).unwrap();
        assert_eq!(key.public(), "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=");
    }
}
