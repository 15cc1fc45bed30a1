//! What nodegraft keeps on this machine for a cluster: its login key, logs, and a lock. Nothing in here is needed
//! to know what exists: domains and volumes describe themselves.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use jiff::Timestamp;

use crate::core::digest::{hex, sha256};
use crate::core::error::{Context, Error, Kind, Result};
use crate::core::plain;
use crate::rooms::files::{self, Failure};
use crate::rooms::keys;

#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// Held while a command changes a cluster's nodes.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The key that nodegraft logs in with.
#[derive(Clone)]
pub struct LoginKey {
    pub path: PathBuf,
    pub public: String,
    pub private: String,
}

impl StateDir {
    /// `$NODEGRAFT_STATE_DIR`, else `nodegraft` below `$XDG_STATE_HOME` (`~/.local/state`); a directory per cluster.
    pub fn open(cluster: &str) -> Result<Self> {
        let base = match std::env::var_os("NODEGRAFT_STATE_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => etcetera::choose_base_strategy()
                .ok()
                .and_then(|dirs| dirs.state_dir())
                .ok_or_else(|| {
                    Error::unfit("you have no home directory to keep logs and keys in")
                        .with_help("set NODEGRAFT_STATE_DIR")
                })?
                .join("nodegraft"),
        };
        Ok(Self {
            root: base.join(cluster),
        })
    }

    fn make(&self, dir: &Path) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(Failure::making)
            .doing(format!("making the directory {}", dir.display()))
    }

    /// Waits for nobody: two runs on one cluster would undo each other.
    pub fn lock(&self) -> Result<Lock> {
        self.make(&self.root)?;
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Failure::from)
            .doing(format!("opening {}", path.display()))?;
        hold(file, &path)
    }

    /// The user's key if the spec names one, else a key of the cluster's own, made once.
    pub fn login_key(&self, own: Option<&str>) -> Result<LoginKey> {
        let path = own.map_or_else(|| self.root.join("id_ed25519"), expand_home);
        if own.is_none() && !path.exists() {
            self.make(&self.root)?;
            let key = keys::generate("nodegraft").doing("making the login key")?;
            files::create_private(&path, key.private.as_deref().unwrap_or_default())
                .doing(format!("writing the login key {}", path.display()))?;
            files::write(&path.with_extension("pub"), &format!("{}\n", key.public))
                .doing("writing the public login key")?;
        }
        let what = format!("reading the SSH key {}", path.display());
        let wrong = |error: Error| {
            error
                .with_help("correct `ssh.key` in the spec, or leave it out: nodegraft makes a key of its own")
                .as_kind(Kind::Refused)
        };
        let private = files::read(&path).doing(what.as_str()).map_err(wrong)?;
        let public = keys::public_of(&private).doing(what).map_err(wrong)?;
        Ok(LoginKey {
            path,
            public,
            private,
        })
    }

    /// The path of a login key that may not exist yet.
    pub fn login_key_path(&self, own: Option<&str>) -> PathBuf {
        own.map_or_else(|| self.root.join("id_ed25519"), expand_home)
    }

    /// A log of a node: `steps/1-init.log`, `console.log`.
    pub fn log(&self, node: &str, name: &str) -> Result<PathBuf> {
        let path = self.root.join(node).join(name);
        if let Some(dir) = path.parent() {
            self.make(dir)?;
        }
        Ok(path)
    }

    /// The same, for a log that begins anew: an earlier one is kept beside it.
    pub fn new_log(&self, node: &str, name: &str) -> Result<PathBuf> {
        let path = self.log(node, name)?;
        set_aside(&path)?;
        Ok(path)
    }
}

/// Who works here, for those who meet us elsewhere: `alice@laptop, nodegraft process 4242`.
pub fn who() -> String {
    let user = ["USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok())
        .unwrap_or_else(|| "somebody".into());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    plain::line(&format!(
        "{user}@{}, nodegraft process {}",
        host.trim(),
        std::process::id()
    ))
}

/// Gives an earlier log a name with the time of its last line, in UTC: `1-init.log` becomes `1-init.20260102T030405Z.log`.
fn set_aside(path: &Path) -> Result<()> {
    let Ok(written) = fs::metadata(path).and_then(|found| found.modified()) else {
        return Ok(());
    };
    let stamp = Timestamp::try_from(written).map_or_else(
        |_| "earlier".to_owned(),
        |at| at.strftime("%Y%m%dT%H%M%SZ").to_string(),
    );
    let names = (1..).map(|n| {
        if n == 1 {
            format!("{stamp}.log")
        } else {
            format!("{stamp}-{n}.log")
        }
    });
    let free = names
        .map(|name| path.with_extension(name))
        .find(|name| !name.exists())
        .expect("the numbers do not end");
    fs::rename(path, &free)
        .map_err(Failure::from)
        .doing(format!("keeping the earlier log as {}", free.display()))
}

/// The same among all users of this machine, for a cluster on one libvirt. Where the directory cannot be written to there is
/// none: a claim still has only one owner, and a guest runs one step at a time.
pub fn lock_host(uri: &str, cluster: &str) -> Result<Option<Lock>> {
    use std::os::unix::fs::PermissionsExt;
    let known = hex(&sha256(format!("{uri}\n{cluster}"))[..8]);
    let path = PathBuf::from(format!("/run/lock/nodegraft.{known}"));
    // Opened before it is made: with O_CREAT the kernel refuses a file of somebody else's in such a directory.
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .or_else(|_| {
            let made = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&path)?;
            made.set_permissions(fs::Permissions::from_mode(0o666))?;
            Ok::<_, std::io::Error>(made)
        });
    opened.ok().map(|file| hold(file, &path)).transpose()
}

fn hold(mut file: File, path: &Path) -> Result<Lock> {
    match file.try_lock() {
        Ok(()) => {
            let _ = file.set_len(0);
            let _ = write!(file, "{}", std::process::id());
            Ok(Lock { _file: file })
        }
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(path).unwrap_or_default();
            Err(Error::unfit(format!(
                "another nodegraft (process {}) is working on this cluster",
                holder.trim()
            ))
            .with_help("wait for it to end, or stop it with Ctrl-C"))
        }
        Err(TryLockError::Error(error)) => {
            Err(Failure::from(error)).doing(format!("locking {}", path.display()))
        }
    }
}

/// The public keys in `~/.ssh` that a person would expect to be let in with.
pub fn own_public_keys() -> Vec<String> {
    let dir = expand_home("~/.ssh");
    ["id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"]
        .iter()
        .filter_map(|name| fs::read_to_string(dir.join(name)).ok())
        .filter_map(|text| {
            text.lines()
                .find(|line| !line.trim().is_empty())
                .map(|line| line.trim().to_owned())
        })
        .collect()
}

/// `~` and `~/x` as a shell would read them.
pub fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), std::env::var_os("HOME")) {
        (Some(""), Some(home)) => PathBuf::from(home),
        (Some(rest), Some(home)) if rest.starts_with('/') => PathBuf::from(home).join(&rest[1..]),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_logs_are_kept_under_the_time_they_ended() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir {
            root: dir.path().to_path_buf(),
        };
        let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_767_322_845);
        for text in ["first", "second", "third"] {
            let log = state.new_log("n1", "steps/1-init.log").unwrap();
            assert!(!log.exists());
            fs::write(&log, text).unwrap();
            File::options()
                .write(true)
                .open(&log)
                .unwrap()
                .set_modified(at)
                .unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join("n1/steps").join(name)).unwrap();
        assert_eq!(read("1-init.20260102T030045Z.log"), "first");
        assert_eq!(read("1-init.20260102T030045Z-2.log"), "second");
        assert_eq!(read("1-init.log"), "third");
    }

    #[test]
    fn who_is_one_line() {
        assert!(
            who().contains('@')
                && who().contains(&std::process::id().to_string())
                && !who().contains('\n')
        );
    }
}
