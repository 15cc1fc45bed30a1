//! A process of this machine, so that it is known again: by host, pid and start time, since pids come back.

use std::fs;

/// This very process.
pub fn this() -> String {
    named(std::process::id())
}

/// A process of this machine.
pub fn named(pid: u32) -> String {
    format!("{} {pid} {}", host(), start_time(pid).unwrap_or_default())
}

/// Whether what [`named`] made is of this machine: of others nobody here can say whether they live.
pub fn is_here(named: &str) -> bool {
    named.split(' ').next() == Some(&host())
}

/// Whether the process that [`this`] named lives; one of another host may.
pub fn may_live(named: &str) -> bool {
    let mut words = named.split(' ');
    let (Some(at), Some(pid), Some(start)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    at != host()
        || pid
            .parse()
            .ok()
            .and_then(start_time)
            .is_some_and(|now| now == start)
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .unwrap_or_default()
        .trim()
        .replace(' ', "-")
}

/// In clock ticks since boot: the 22nd field, counted behind the name, which may have spaces in it. `None` for one that is dead,
/// if only its parent does not know yet.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let dead = matches!(fields.first(), Some(&"Z" | &"X"));
    fields
        .get(19)
        .filter(|_| !dead)
        .map(|start| (*start).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_one_with_its_pid_of_another_time_does_not() {
        assert!(may_live(&this()));
        let pid = std::process::id();
        assert!(!may_live(&format!("{} {pid} 1", host())));
        assert!(may_live("elsewhere.example 1 1"), "nobody here knows");
        assert!(is_here(&this()) && !is_here("elsewhere.example 1 1"));
        assert!(!may_live(""));
    }
}
