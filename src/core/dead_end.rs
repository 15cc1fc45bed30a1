//! A guest that will not boot, told by what its serial console shows. A panic alone is none: some images panic in a first
//! try without their initramfs, reboot at once, and are well.

use std::time::Duration;

/// A console is silent this long behind a dead end before that counts. Less would take a reboot for one.
pub const SILENCE: Duration = Duration::from_secs(10);
/// A guest that still prints this long after a dead end has left it behind.
const GOES_ON: Duration = Duration::from_secs(20);

/// What a console shows that waiting does not mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadEnd {
    /// As in "the guest does not boot: ...".
    pub what: String,
    pub help: &'static str,
}

/// What a console has shown since the VM was started.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// The latest; the last may be a prompt.
    pub lines: Vec<String>,
    /// How many lines came before these.
    pub before: usize,
    /// How long nothing has come.
    pub silence: Duration,
}

/// Looks at a console again and again, for a dead end that the guest does not leave.
#[derive(Debug, Default)]
pub struct Watch {
    /// Lines that the guest has left behind.
    passed: usize,
    /// When a dead end was first seen, on the caller's clock.
    since: Option<Duration>,
}

impl Watch {
    /// `now` is any clock that does not go back.
    pub fn look(&mut self, shown: &Shown, now: Duration) -> Option<DeadEnd> {
        let skipped = self.passed.saturating_sub(shown.before);
        let Some(end) = shown.lines.get(skipped..).and_then(find) else {
            self.since = None;
            return None;
        };
        if shown.silence >= SILENCE {
            return Some(end);
        }
        if now - *self.since.get_or_insert(now) >= GOES_ON {
            self.passed = shown.before + shown.lines.len();
            self.since = None;
        }
        None
    }
}

/// The last dead end that these lines show, unless the guest says that it reboots by itself.
fn find(lines: &[String]) -> Option<DeadEnd> {
    let reboots = |line: &&String| line.contains("Rebooting in ");
    let latest = lines.iter().rev().take_while(|line| !reboots(line));
    latest.into_iter().find_map(|line| {
        let line = line.trim();
        if let Some((_, why)) = line.split_once("Kernel panic - not syncing: ") {
            return Some(DeadEnd {
                what: format!("its kernel panicked: {why}"),
                help: if why.contains("root fs") {
                    "the kernel finds no root file system: was the template made for virtio disks, and is it whole?"
                } else {
                    "does the template boot elsewhere, and is its disk whole? the console's lines before the panic may say more"
                },
            });
        }
        SHELLS.iter().find(|(shown, ..)| line.starts_with(shown)).map(|(_, what, help)| DeadEnd {
            what: (*what).to_owned(),
            help,
        })
    })
}

/// How the line begins, what it means, and what to do.
const SHELLS: [(&str, &str, &str); 6] = [
    ("You are in emergency mode", EMERGENCY, FILE_SYSTEMS),
    (
        "Give root password for maintenance",
        EMERGENCY,
        FILE_SYSTEMS,
    ),
    (
        "(initramfs)",
        "it stopped in the shell of its initramfs",
        ROOT,
    ),
    (
        "dracut:/#",
        "it stopped in the shell of its initramfs",
        ROOT,
    ),
    (
        "grub>",
        BOOT_LOADER,
        "the template has no boot menu that works: does it boot elsewhere?",
    ),
    (
        "grub rescue>",
        BOOT_LOADER,
        "the boot loader finds its own files no more: is the template whole?",
    ),
];
const EMERGENCY: &str = "it stopped in emergency mode";
const BOOT_LOADER: &str = "it stopped in its boot loader";
const FILE_SYSTEMS: &str =
    "a file system of /etc/fstab is missing, or damaged: look at the template";
const ROOT: &str = "it finds no root file system: was the template made for virtio disks?";

#[cfg(test)]
mod tests {
    use super::*;

    const PANIC: &str =
        "[ 1.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)";

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn found(text: &str) -> Option<String> {
        find(&lines(text)).map(|end| end.what)
    }

    /// What is said of a console that shows each text, in seconds since its start with seconds of silence.
    fn watched(story: &[(u64, u64, &str)]) -> Vec<bool> {
        let mut watch = Watch::default();
        let look = |(now, silence, text): &(u64, u64, &str)| {
            let shown = Shown {
                lines: lines(text),
                before: 0,
                silence: Duration::from_secs(*silence),
            };
            watch.look(&shown, Duration::from_secs(*now)).is_some()
        };
        story.iter().map(look).collect()
    }

    #[test]
    fn a_guest_that_reboots_after_a_panic_may_boot_well() {
        assert_eq!(watched(&[(1, 0, PANIC), (12, 11, PANIC)]), [false, true]);
        let on = format!("{PANIC}\nSeaBIOS\n[ 0.0] Linux version 6.12\n");
        let well = format!("{on}[ 30.0] systemd[1]: Started\n");
        assert_eq!(
            watched(&[(1, 0, PANIC), (5, 2, &on), (22, 1, &well), (60, 30, &well)]),
            [false; 4],
            "it left the panic behind"
        );
        let again = format!("{well}{PANIC}");
        assert_eq!(
            watched(&[
                (1, 0, PANIC),
                (22, 1, &well),
                (50, 0, &again),
                (61, 11, &again)
            ]),
            [false, false, false, true]
        );
        let soon = format!("{PANIC}\n[ 1.2] Rebooting in 30 seconds..");
        assert_eq!(watched(&[(1, 0, &soon), (20, 19, &soon)]), [false; 2]);
    }

    #[test]
    fn a_guest_that_has_given_up_is_told_from_one_that_is_slow() {
        for (text, what) in [
            (
                "[    1.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n[    1.2] CPU: 0 PID: 1",
                Some("its kernel panicked: VFS: Unable to mount root fs on unknown-block(0,0)"),
            ),
            (
                "mounting ...\n(initramfs) ",
                Some("it stopped in the shell of its initramfs"),
            ),
            (
                "You are in emergency mode. After logging in, type \"journalctl -xb\"",
                Some("it stopped in emergency mode"),
            ),
            ("grub rescue> ", Some("it stopped in its boot loader")),
            (
                "Loading initial ramdisk ...\n[  OK  ] Reached target emergency-net.target",
                None,
            ),
            ("n1 login: ", None),
            ("", None),
        ] {
            assert_eq!(found(text).as_deref(), what, "{text}");
        }
    }
}
