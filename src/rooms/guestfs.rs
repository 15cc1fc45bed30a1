//! Edits a disk image that no guest runs from, by libguestfs' `virt-customize`. The only user of that program.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::core::error::{Context, Error, Result};
use crate::core::first_boot::Unit;

pub const PROGRAM: &str = "virt-customize";
const SHOWN: usize = 10;
/// The small VM that it runs boots in software emulation at worst, perhaps next to others.
pub const LIMIT: Duration = Duration::from_secs(900);

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
    let dir = tempfile::tempdir().doing("making a temporary directory")?;
    let mut command = Command::new(PROGRAM);
    command.arg("-a").arg(image).arg("--no-network");
    let parent_of = |command: &mut Command, path: &str| {
        if let Some((parent, _)) = path.rsplit_once('/') {
            command.arg("--mkdir").arg(parent);
        }
    };
    for (number, (path, text, mode)) in unit.files.iter().enumerate() {
        let local = dir.path().join(number.to_string());
        std::fs::write(&local, text).doing("writing a temporary file")?;
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
        .doing(&*what)
        .map_err(|error| error.with_help("install it: apt-get install guestfs-tools"))?;
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
        .map_err(|_| Error::new(format!("{what} took more than {} s", LIMIT.as_secs())))?
        .doing(&*what)?;
    if status.success() {
        return Ok(());
    }
    let last = said[said.len().saturating_sub(SHOWN)..].to_vec();
    Err(Error::new(what)
        .because(Error::new(format!("it ended with {status}")))
        .with_detail(last)
        .with_help("may you write that image, and read a kernel in /boot (libguestfs boots it)? try: libguestfs-test-tool"))
}
