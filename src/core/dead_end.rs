//! A guest that will not boot, told by what its serial console shows. A panic alone is no end: some images panic in a first
//! try without their initramfs, reboot at once, and are well.

use std::time::Duration;

/// A prompt that nobody answers is silent.
const SILENCE: Duration = Duration::from_secs(10);
/// So is an old kernel that panicked; a newer one says that it stays down.
const LONG_SILENCE: Duration = Duration::from_secs(60);
/// A guest that reboots after each panic has had its tries then.
const TRIES: usize = 3;

const PANIC: &str = "Kernel panic - not syncing: ";
const STAYS_DOWN: &str = "---[ end Kernel panic - not syncing: ";
const REBOOTS: &str = "Rebooting in ";
const NEXT_BOOT: &str = "Linux version ";

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
    /// The latest; the last may be a prompt, and may go on.
    pub lines: Vec<String>,
    /// How many lines came before these.
    pub before: usize,
    /// How long nothing has come.
    pub silence: Duration,
}

/// Looks at a console again and again. It keeps few lines, so panics are counted as they come.
#[derive(Debug, Default)]
pub struct Watch {
    panics: usize,
    /// Lines among which they were counted.
    counted: usize,
}

impl Watch {
    pub fn look(&mut self, shown: &Shown) -> Option<DeadEnd> {
        let whole = shown.lines.len().saturating_sub(1);
        let fresh = self.counted.saturating_sub(shown.before).min(whole);
        let begins = |line: &&String| line.contains(PANIC) && !line.contains(STAYS_DOWN);
        self.panics += shown.lines[fresh..whole].iter().filter(begins).count();
        self.counted = shown.before + whole;
        if self.panics >= TRIES
            && let Some(why) = shown.lines.iter().rev().find_map(|line| why(line))
        {
            return Some(panicked(
                &format!("its kernel panicked {} times", self.panics),
                why,
            ));
        }
        let this_boot = shown
            .lines
            .iter()
            .rev()
            .take_while(|line| !line.contains(NEXT_BOOT));
        let mut reboots = false;
        for line in this_boot {
            reboots |= line.contains(REBOOTS);
            let line = line.trim();
            if line.contains(STAYS_DOWN) {
                return why(line).map(|why| panicked("its kernel panicked", why));
            }
            if let Some(why) = why(line) {
                let down = shown.silence >= LONG_SILENCE && !reboots;
                return down.then(|| panicked("its kernel panicked", why));
            }
            if let Some((_, what, help)) = SHELLS.iter().find(|(begin, ..)| line.starts_with(begin))
            {
                return (shown.silence >= SILENCE).then(|| DeadEnd {
                    what: (*what).to_owned(),
                    help,
                });
            }
        }
        None
    }
}

/// What a line of a panic gives as its reason.
fn why(line: &str) -> Option<&str> {
    let (_, why) = line.split_once(PANIC)?;
    Some(why.trim_end().trim_end_matches("]---").trim_end())
}

fn panicked(what: &str, why: &str) -> DeadEnd {
    DeadEnd {
        what: format!("{what}: {why}"),
        help: if why.contains("root fs") {
            "the kernel finds no root file system: was the template made for virtio disks, and is it whole?"
        } else {
            "does the template boot elsewhere, and is its disk whole? the console's lines before the panic may say more"
        },
    }
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

    const PANICS: &str =
        "[ 1.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n";
    const ENDS: &str = "[ 1.3] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---\n";
    const REASON: &str = "its kernel panicked: VFS: Unable to mount root fs on unknown-block(0,0)";

    fn shown(text: &str, silence: u64) -> Shown {
        Shown {
            lines: text.split('\n').map(str::to_owned).collect(),
            before: 0,
            silence: Duration::from_secs(silence),
        }
    }

    fn found(text: &str, silence: u64) -> Option<String> {
        Watch::default()
            .look(&shown(text, silence))
            .map(|end| end.what)
    }

    #[test]
    fn a_guest_that_has_given_up_is_told_from_one_that_is_slow() {
        for (text, what) in [
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
            assert_eq!(found(text, 11).as_deref(), what, "{text}");
            assert_eq!(found(text, 3), None, "it may go on: {text}");
        }
    }

    #[test]
    fn a_kernel_that_stays_down_says_so_and_an_old_one_is_silent() {
        let down = format!("{PANICS}[ 1.2] CPU: 0 PID: 1\n{ENDS}");
        assert_eq!(found(&down, 0).as_deref(), Some(REASON));
        assert_eq!(found(PANICS, 11), None);
        assert_eq!(found(PANICS, 61).as_deref(), Some(REASON));
    }

    #[test]
    fn a_guest_that_reboots_after_a_panic_may_boot_well() {
        let on = format!("{PANICS}[ 0.0] Linux version 6.12\n");
        assert_eq!(found(&on, 90), None, "it left the panic behind");
        let soon = format!("{PANICS}[ 1.2] Rebooting in 30 seconds..\n");
        assert_eq!(found(&soon, 90), None);
    }

    #[test]
    fn one_that_panics_again_and_again_has_had_its_tries() {
        let round = format!("[ 0.0] Linux version 6.12\n{PANICS}[ 1.2] Rebooting in 5 seconds..\n");
        let mut watch = Watch::default();
        let mut look = |text: &str, before| {
            let shown = Shown {
                before,
                ..shown(text, 0)
            };
            watch.look(&shown).map(|end| end.what)
        };
        assert_eq!(look(&round, 0), None);
        assert_eq!(look(&round, 0), None, "the same panic");
        assert_eq!(look(&format!("{round}{round}"), 0), None);
        // The first lines are kept no more.
        assert_eq!(
            look(&round, 6).as_deref(),
            Some("its kernel panicked 3 times: VFS: Unable to mount root fs on unknown-block(0,0)")
        );
    }
}
