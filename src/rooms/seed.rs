//! The seed volume: a small FAT image labelled CIDATA with a node's identity. The only user of `fatfs`.

use std::io::{Cursor, Write};

use crate::core::error::{Context, Result};

/// A floppy's size is plenty, and the smallest that every reader accepts.
const SIZE: usize = 1440 << 10;

/// Builds the image in memory; a name may lie in a directory, as `firstboot/ifcfg`. The same files give the same bytes.
pub fn image(files: &[(&str, String)]) -> Result<Vec<u8>> {
    let mut bytes = vec![0_u8; SIZE];
    let options = fatfs::FormatVolumeOptions::new()
        .volume_label(*b"CIDATA     ")
        .volume_id(0x6e6f_6465);
    fatfs::format_volume(Cursor::new(&mut bytes[..]), options)
        .doing("formatting the seed image")?;
    {
        let volume = fatfs::FileSystem::new(Cursor::new(&mut bytes[..]), fatfs::FsOptions::new())
            .doing("opening the seed image")?;
        for (name, text) in files {
            if let Some((dir, _)) = name.split_once('/') {
                volume
                    .root_dir()
                    .create_dir(dir)
                    .doing(format!("adding {dir} to the seed image"))?;
            }
            let mut file = volume
                .root_dir()
                .create_file(name)
                .doing(format!("adding {name} to the seed image"))?;
            file.write_all(text.as_bytes())
                .doing(format!("writing {name} into the seed image"))?;
            file.flush().doing("writing the seed image")?;
        }
        volume.unmount().doing("closing the seed image")?;
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
}
