//! Files of this machine, and what it means where one cannot be read or written.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::core::error::{Cause, Kind, system_words};

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("it does not exist")]
    Absent,
    /// Of what is to be made.
    #[error("nothing can be made there")]
    NoPlace,
    #[error("it exists already")]
    Exists,
    #[error("permission denied")]
    Forbidden,
    #[error("its file system is read-only")]
    ReadOnly,
    #[error("its file system is full")]
    Full,
    #[error("it is a directory")]
    Directory,
    #[error("it is not text")]
    NotText,
    /// In the system's own words.
    #[error("{0}")]
    Other(String),
}

impl Cause for Failure {
    fn kind(&self) -> Kind {
        match self {
            Self::Exists => Kind::Refused,
            _ => Kind::Unfit,
        }
    }

    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Absent | Self::Directory => "is the path right?",
            Self::NoPlace => "does the directory above it exist?",
            Self::Exists => "name one that does not exist: nothing is overwritten",
            Self::Forbidden => "do you have permission for it and the directories above it?",
            Self::ReadOnly => "name a place that can be written to",
            Self::Full => "make room there; see: df -h",
            Self::NotText => "is it the right file?",
            Self::Other(_) => return None,
        };
        Some(help.to_owned())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            io::ErrorKind::AlreadyExists => Self::Exists,
            io::ErrorKind::PermissionDenied => Self::Forbidden,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::IsADirectory => Self::Directory,
            io::ErrorKind::InvalidData => Self::NotText,
            _ => Self::Other(system_words(&error)),
        }
    }
}

impl Failure {
    /// Of what was to be made: that it does not exist is no news.
    pub(super) fn making(error: io::Error) -> Self {
        match error.into() {
            Self::Absent => Self::NoPlace,
            other => other,
        }
    }
}

type Result<T> = std::result::Result<T, Failure>;

pub fn read(path: &Path) -> Result<String> {
    Ok(fs::read_to_string(path)?)
}

pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    Ok(fs::read(path)?)
}

pub fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Failure::making)
}

/// A new file, or an earlier one emptied.
pub fn create(path: &Path) -> Result<fs::File> {
    fs::File::create(path).map_err(Failure::making)
}

/// A new file that nobody else can read, not even for a moment.
pub fn create_private(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(Failure::making)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// A directory with those above it.
pub fn create_dirs(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Failure::making)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_told_in_words_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("there"), [0xff]).unwrap();
        let said = [
            read(&at("absent")).unwrap_err(),
            read(&at("there")).unwrap_err(),
            read(dir.path()).unwrap_err(),
            create_private(&at("there"), "").unwrap_err(),
            create_dirs(&at("there/below")).unwrap_err(),
            write(Path::new("/dev/full"), "x").unwrap_err(),
            create_dirs(Path::new("/proc/x")).unwrap_err(),
        ];
        let words = said.each_ref().map(ToString::to_string);
        assert_eq!(
            words,
            [
                "it does not exist",
                "it is not text",
                "it is a directory",
                "it exists already",
                "not a directory",
                "its file system is full",
                "nothing can be made there",
            ]
        );
        assert_eq!(said[3].kind(), Kind::Refused);
        assert_eq!(said[0].kind(), Kind::Unfit);
    }
}
