//! A guest that will not boot, told by what its serial console shows.

/// What a console shows that waiting does not mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadEnd {
    /// As in "the guest does not boot: ...".
    pub what: String,
    pub help: &'static str,
}

/// `lines` are the console's since the VM was started; the last may be a prompt.
pub fn find(lines: &[String]) -> Option<DeadEnd> {
    lines.iter().rev().find_map(|line| {
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

    fn found(text: &str) -> Option<String> {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        find(&lines).map(|end| end.what)
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
