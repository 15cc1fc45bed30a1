//! Edits a disk image that no guest runs from, by libguestfs' `virt-customize`. The only user of that program.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::core::error::{Cause, Context, Error, Kind, Result, system_words};
use crate::core::first_boot::Unit;
use crate::rooms::files::{self, Failure as FileFailure};

pub const PROGRAM: &str = "virt-customize";
const SHOWN: usize = 10;
/// The small VM that it runs boots in software emulation at worst, perhaps next to others.
pub const LIMIT: Duration = Duration::from_secs(900);

/// Why an image was not edited.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{PROGRAM} is not installed")]
    Missing,
    #[error("{PROGRAM} cannot be started: {0}")]
    NotStarted(String),
    #[error("it was not done within {} s, and was killed", LIMIT.as_secs())]
    TimedOut,
    #[error("{PROGRAM} failed with {0}")]
    Failed(String),
}

impl Cause for Failure {
    fn kind(&self) -> Kind {
        Kind::Unfit
    }

    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Missing | Self::NotStarted(_) => "install it: apt-get install guestfs-tools",
            Self::TimedOut => {
                "libguestfs runs a small VM: without KVM it is slow; run the same command again"
            }
            Self::Failed(_) => {
                "do you have permission to write that image, and to read a kernel in /boot (libguestfs boots it)? try: libguestfs-test-tool"
            }
        };
        Some(help.to_owned())
    }
}

/// Whether the program is on this machine.
pub fn is_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(PROGRAM).is_file())
}

/// Puts the first-boot unit into an image on this machine; `on_line` is told what the program says. Doing it twice is harmless.
/// libguestfs runs a small VM: `kvm` tells whether that one may use KVM.
pub async fn add(
    image: &Path,
    unit: &Unit,
    kvm: bool,
    mut on_line: impl FnMut(&str),
) -> Result<()> {
    let dir = tempfile::tempdir()
        .map_err(FileFailure::making)
        .doing(format!(
            "making a temporary directory in {}",
            std::env::temp_dir().display()
        ))?;
    let mut command = Command::new(PROGRAM);
    command.arg("-a").arg(image).arg("--no-network");
    let parent_of = |command: &mut Command, path: &str| {
        if let Some((parent, _)) = path.rsplit_once('/') {
            command.arg("--mkdir").arg(parent);
        }
    };
    for (number, (path, text, mode)) in unit.files.iter().enumerate() {
        let local = dir.path().join(number.to_string());
        files::write(&local, text).doing("writing a temporary file")?;
        parent_of(&mut command, path);
        command
            .arg("--upload")
            .arg(format!("{}:{path}", local.display()))
            .arg("--chmod")
            .arg(format!("{mode:04o}:{path}"));
    }
    let (target, link) = unit.link;
    parent_of(&mut command, link);
    command.arg("--link").arg(format!("{target}:{link}"));
    // libvirt would define a VM of its own on the host.
    command.env("LIBGUESTFS_BACKEND", "direct");
    if !kvm {
        command.env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let what = format!("editing {} with {PROGRAM}", image.display());
    let mut child = command
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::Missing,
            _ => Failure::NotStarted(system_words(&error)),
        })
        .doing(&*what)?;
    let (mut out, mut err) = (
        BufReader::new(child.stdout.take().expect("it is piped")).lines(),
        BufReader::new(child.stderr.take().expect("it is piped")).lines(),
    );
    let mut said: Vec<String> = Vec::new();
    let mut both_open = (true, true);
    let work = async {
        while both_open.0 || both_open.1 {
            let line = tokio::select! {
                line = out.next_line(), if both_open.0 => { both_open.0 = matches!(line, Ok(Some(_))); line },
                line = err.next_line(), if both_open.1 => { both_open.1 = matches!(line, Ok(Some(_))); line },
            };
            if let Ok(Some(line)) = line {
                on_line(&line);
                said.push(line);
            }
        }
        child.wait().await
    };
    let status = tokio::time::timeout(LIMIT, work)
        .await
        .map_err(|_| Failure::TimedOut)
        .and_then(|ended| ended.map_err(|error| Failure::Failed(system_words(&error))))
        .doing(&*what)?;
    if status.success() {
        return Ok(());
    }
    let last = said[said.len().saturating_sub(SHOWN)..].to_vec();
    Err(Error::during(what, Failure::Failed(status.to_string())).with_detail(last))
}
