//! The seed volume: a small FAT image labelled CIDATA with a node's identity. The only user of `fatfs`.

use std::io::{Cursor, Write};

use crate::core::error::{Cause, Context, Kind, Result};

/// Why there is no image. The library says only in words why it fails; in memory there is one reason: no room.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the seed image has no room for {0}")]
    Full(String),
    #[error("the file system of the seed image does not work")]
    Broken,
}

impl Cause for Failure {
    fn kind(&self) -> Kind {
        match self {
            Self::Full(_) => Kind::Refused,
            Self::Broken => Kind::Bug,
        }
    }

    fn help(&self) -> Option<String> {
        match self {
            Self::Full(_) => Some(
                "it holds 1.4 MB: give fewer `authorized_keys`, or smaller templates".to_owned(),
            ),
            Self::Broken => None,
        }
    }
}

/// A floppy's size is plenty, and the smallest that every reader accepts.
const SIZE: usize = 1440 << 10;

/// Builds the image in memory; a name may lie in a directory, as `firstboot/ifcfg`. The same files give the same bytes.
pub fn image(files: &[(&str, String)]) -> Result<Vec<u8>> {
    filled(files).doing("making the seed image")
}

fn filled(files: &[(&str, String)]) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0_u8; SIZE];
    let options = fatfs::FormatVolumeOptions::new()
        .volume_label(*b"CIDATA     ")
        .volume_id(0x6e6f_6465);
    fatfs::format_volume(Cursor::new(&mut bytes[..]), options).map_err(|_| Failure::Broken)?;
    {
        let volume = fatfs::FileSystem::new(Cursor::new(&mut bytes[..]), fatfs::FsOptions::new())
            .map_err(|_| Failure::Broken)?;
        for (name, text) in files {
            let full = |_| Failure::Full((*name).to_owned());
            if let Some((dir, _)) = name.split_once('/') {
                volume.root_dir().create_dir(dir).map_err(full)?;
            }
            let mut file = volume.root_dir().create_file(name).map_err(full)?;
            file.write_all(text.as_bytes()).map_err(full)?;
            file.flush().map_err(full)?;
        }
        volume.unmount().map_err(|_| Failure::Broken)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn files_come_back_under_the_label_cidata() {
        let files = [
            ("user-data", "#cloud-config\n".repeat(500)),
            ("firstboot/ifcfg", "a\n".to_owned()),
            ("firstboot/networkd", "b\n".to_owned()),
        ];
        let bytes = image(&files).unwrap();
        assert_eq!(bytes, image(&files).unwrap(), "the image is reproducible");
        let volume = fatfs::FileSystem::new(Cursor::new(bytes), fatfs::FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), "CIDATA");
        for (name, text) in files {
            let mut read = String::new();
            volume
                .root_dir()
                .open_file(name)
                .unwrap()
                .read_to_string(&mut read)
                .unwrap();
            assert_eq!(read, text);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = filled(&[
            ("meta-data", String::new()),
            ("user-data", "x".repeat(SIZE)),
        ]);
        let error = error.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the seed image has no room for user-data"
        );
        assert_eq!(error.kind(), Kind::Refused);
    }
}
