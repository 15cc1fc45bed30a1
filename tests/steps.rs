//! The runner of steps, `templates/steps/run-step.sh`, as each shell that may be a guest's `sh` reads it: real processes,
//! a stand-in for the SSH server they hang on, and recorders for systemd and the kernel's log.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const RUNNER: &str = include_str!("../templates/steps/run-step.sh");

/// Like a server's process for one connection: whatever runs below it is connected for as long as it lives.
const SSHD: &str = "#!/bin/sh\n\"$@\"\nexit $?\n";

/// One service, whose state lies in files.
const SYSTEMCTL: &str = r#"#!/bin/sh
cd "$NODEGRAFT_TEST" || exit 9
echo "$*" >>calls
case $1 in
  daemon-reload) [ ! -e hang ] || sleep 60 ;;
  restart)
    echo $(($(cat starts) + 1)) >starts
    if [ -e broken ]; then echo failed >state; else echo active >state; fi
    ;;
  show)
    [ ! -e flapping ] || echo $(($(cat starts) + 1)) >starts
    printf 'Type=%s\nMainPID=%s\nActiveEnterTimestampMonotonic=7\nActiveState=%s\n' "$(cat type)" "$(cat starts)" "$(cat state)"
    ;;
esac
"#;

struct Guest {
    dir: TempDir,
    shell: PathBuf,
}

struct Ran {
    code: i32,
    output: String,
}

/// A step to run.
#[derive(Clone, Copy)]
struct Work<'a> {
    script: &'a str,
    digest: &'a str,
    run: &'a str,
    seconds: u32,
    service: bool,
}

const WORK: Work<'static> = Work {
    script: "true",
    digest: "d1",
    run: "r1",
    seconds: 30,
    service: false,
};

impl Guest {
    /// `shell` is what `sh` is there.
    fn new(shell: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir(dir.path().join("steps")).unwrap();
        for (name, text) in [
            ("sshd", SSHD),
            ("systemctl", SYSTEMCTL),
            ("journalctl", "#!/bin/sh\necho the service says why\n"),
            ("dmesg", "#!/bin/sh\ncat \"$NODEGRAFT_TEST/dmesg\"\n"),
        ] {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        symlink(shell, bin.join("sh")).unwrap();
        let guest = Self {
            dir,
            shell: shell.into(),
        };
        for (name, text) in [
            ("steps/run-step.sh", RUNNER),
            ("dmesg", ""),
            ("state", "active"),
            ("starts", "1"),
            ("type", "notify"),
        ] {
            guest.write(name, text);
        }
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name))
            .ok()
            .map(|text| text.trim().to_owned())
    }

    /// Scripts of the step that are kept.
    fn scripts(&self) -> Vec<String> {
        let names = fs::read_dir(self.path("steps"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names
            .filter(|name| name.starts_with("1-work.") && name.ends_with(".sh"))
            .collect();
        names.sort();
        names
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/sshd"));
        let path = format!(
            "{}:{}",
            self.path("bin").display(),
            std::env::var("PATH").unwrap()
        );
        command
            .arg("sh")
            .arg(self.path("steps/run-step.sh"))
            .args(words)
            .env("PATH", path)
            .env("NODEGRAFT_TEST", self.dir.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        command
    }

    fn start(&self, work: Work<'_>) -> Child {
        let name = format!("steps/1-work.{}.{}.sh", work.digest, work.run);
        let text = work
            .script
            .replace('@', &self.dir.path().display().to_string());
        self.write(&name, &text);
        let (script, seconds, config) = (
            self.path(&name),
            work.seconds.to_string(),
            self.path("config"),
        );
        let who = format!("{}@host, nodegraft process 7", work.run);
        let mut words = vec![
            "run",
            "1-work",
            script.to_str().unwrap(),
            work.digest,
            work.run,
            &seconds,
            &who,
        ];
        if work.service {
            words.extend(["the-service", config.to_str().unwrap(), "/absent"]);
        }
        self.command(&words).spawn().unwrap()
    }

    fn run(&self, work: Work<'_>) -> Ran {
        end(self.start(work))
    }

    fn stop(&self, run: &str) {
        assert!(self.command(&["stop", run]).status().unwrap().success());
    }

    /// A number that the step wrote there.
    fn number(&self, name: &str) -> u32 {
        eventually(&format!("{name} to be written"), || {
            self.read(name).is_some_and(|text| !text.is_empty())
        });
        self.read(name).unwrap().parse().unwrap()
    }

    fn owner(&self, key: &str) -> Option<String> {
        self.read("steps/owner")?
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    }

    fn lock_is_free(&self) -> bool {
        Command::new("flock")
            .arg("-n")
            .arg(self.path("steps/lock"))
            .arg("true")
            .status()
            .unwrap()
            .success()
    }

    fn restarts(&self) -> usize {
        self.read("calls")
            .unwrap_or_default()
            .lines()
            .filter(|line| *line == "restart the-service")
            .count()
    }
}

fn end(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        output: String::from_utf8(output.stdout).unwrap(),
    }
}

fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('Z'))
}

fn kill(pid: u32) {
    Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status()
        .unwrap();
}

fn child_of(pid: u32) -> u32 {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "waited 20 s for {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Once for each shell of this machine that may be a guest's `sh`.
fn in_each_shell(test: impl Fn(&Guest) + Sync) {
    each(
        &["/usr/bin/dash", "/usr/bin/bash", "/usr/bin/busybox"],
        test,
    );
}

/// The same where there is systemd.
fn with_services(test: impl Fn(&Guest) + Sync) {
    each(&["/usr/bin/dash", "/usr/bin/bash"], test);
}

fn each(shells: &[&str], test: impl Fn(&Guest) + Sync) {
    let shells: Vec<_> = shells
        .iter()
        .filter(|shell| Path::new(shell).exists())
        .collect();
    assert!(!shells.is_empty());
    std::thread::scope(|scope| {
        for shell in shells {
            let test = &test;
            scope.spawn(move || test(&Guest::new(shell)));
        }
    });
}

const SLEEPER: &str = "sleep 300 & echo $! >@/child; echo $$ >@/shell; wait";

#[test]
fn a_step_that_ends_well_leaves_its_marker_and_its_newest_script() {
    in_each_shell(|guest| {
        let failed = guest.run(Work {
            script: "echo first; exit 3",
            ..WORK
        });
        assert_eq!(
            (
                failed.code,
                failed.output.as_str(),
                guest.read("steps/1-work.done")
            ),
            (3, "first\n", None)
        );
        // Not every shell sees more of a file's time than its second.
        std::thread::sleep(Duration::from_millis(1100));
        let ran = guest.run(Work {
            script: "echo second",
            digest: "d2",
            run: "r2",
            ..WORK
        });
        assert_eq!(
            (
                ran.code,
                ran.output.as_str(),
                guest.read("steps/1-work.done")
            ),
            (0, "second\n", Some("d2".into()))
        );
        assert_eq!(guest.scripts(), ["1-work.d2.r2.sh"]);
        assert_eq!(guest.read("steps/owner"), None);
        // One that fails is not done any more.
        assert_eq!(
            guest
                .run(Work {
                    script: "exit 1",
                    digest: "d3",
                    run: "r3",
                    ..WORK
                })
                .code,
            1
        );
        assert_eq!(guest.read("steps/1-work.done"), None);
    });
}

#[test]
fn what_a_step_leaves_running_does_not_keep_the_lock() {
    in_each_shell(|guest| {
        let ran = guest.run(Work { script: "exec >/dev/null; setsid sleep 300 & echo $! >@/daemon; sleep 300 & echo $! >@/job", ..WORK });
        assert_eq!(ran.code, 0);
        let (daemon, job) = (guest.number("daemon"), guest.number("job"));
        assert!(lives(daemon) && lives(job));
        assert!(guest.lock_is_free());
        assert_eq!(guest.run(Work { run: "r2", ..WORK }).code, 0);
        kill(daemon);
        kill(job);
    });
}

#[test]
fn a_stopped_run_ends_its_own_step_whole_and_begins_no_other() {
    in_each_shell(|guest| {
        let step = guest.start(Work {
            script: SLEEPER,
            ..WORK
        });
        let (child, shell) = (guest.number("child"), guest.number("shell"));
        assert_eq!(guest.owner("run").unwrap(), "r1");
        assert_eq!(guest.owner("step").unwrap(), "1-work");
        assert_eq!(guest.owner("digest").unwrap(), "d1");
        assert_eq!(guest.owner("who").unwrap(), "r1@host, nodegraft process 7");
        assert!(!guest.lock_is_free());
        guest.stop("r2");
        assert!(lives(child) && lives(shell), "a stop of another run");
        guest.stop("r1");
        assert!(!lives(child) && !lives(shell));
        assert_ne!(end(step).code, 0);
        assert!(
            guest.lock_is_free()
                && guest.read("steps/1-work.done").is_none()
                && guest.read("steps/owner").is_none()
        );
        // A runner of it that was on its way comes too late.
        assert_ne!(
            guest
                .run(Work {
                    script: "touch @/begun",
                    ..WORK
                })
                .code,
            0
        );
        assert!(!guest.path("begun").exists());
    });
}

#[test]
fn one_that_ignores_the_request_is_killed() {
    in_each_shell(|guest| {
        let step = guest.start(Work {
            script: "trap '' TERM; sleep 300 & echo $! >@/child; wait; wait",
            ..WORK
        });
        let child = guest.number("child");
        guest.stop("r1");
        assert!(!lives(child));
        assert_ne!(end(step).code, 0);
    });
}

#[test]
fn the_step_of_a_dead_run_is_ended_by_the_next() {
    in_each_shell(|guest| {
        // Had it read on in a script of the same name, it would have run its middle.
        let mut dead = guest.start(Work {
            script: "echo $$ >@/shell; sleep 2\n# a comment\n# a comment\ntouch @/wrong",
            ..WORK
        });
        let shell = guest.number("shell");
        dead.kill().unwrap();
        dead.wait().unwrap();
        assert!(lives(shell), "a step outlives its connection");
        let next = guest.run(Work {
            script: "touch @/right",
            digest: "d2",
            run: "r2",
            ..WORK
        });
        assert_eq!(next.code, 0);
        assert!(
            next.output.contains("nodegraft-step:ended the step 1-work of r1@host, nodegraft process 7, at work since 2"),
            "{}",
            next.output
        );
        assert!(!lives(shell));
        std::thread::sleep(Duration::from_secs(2));
        assert!(guest.path("right").exists() && !guest.path("wrong").exists());
        assert_eq!(guest.read("steps/1-work.done").unwrap(), "d2");
    });
}

#[test]
fn the_step_of_a_live_run_is_waited_for_by_name() {
    in_each_shell(|guest| {
        let live = guest.start(Work {
            script: "touch @/begun; while [ ! -e @/go ]; do sleep 0.1; done",
            ..WORK
        });
        eventually("the step to begin", || guest.path("begun").exists());
        let busy = guest.run(Work {
            digest: "d2",
            run: "r2",
            seconds: 2,
            ..WORK
        });
        assert_eq!(busy.code, 75);
        for told in [
            "nodegraft-step:waiting the step 1-work of r1@host",
            "nodegraft-step:busy the step 1-work of r1@host",
            "run r1",
        ] {
            assert!(
                busy.output.contains(told),
                "{told} is missing in {}",
                busy.output
            );
        }
        let next = guest.start(Work {
            digest: "d3",
            run: "r3",
            ..WORK
        });
        std::thread::sleep(Duration::from_millis(500));
        guest.write("go", "");
        assert_eq!(end(live).code, 0);
        assert_eq!(end(next).code, 0);
        assert_eq!(guest.read("steps/1-work.done").unwrap(), "d3");
    });
}

#[test]
fn a_run_that_dies_while_it_waits_never_begins() {
    in_each_shell(|guest| {
        let live = guest.start(Work {
            script: "touch @/begun; while [ ! -e @/go ]; do sleep 0.1; done",
            ..WORK
        });
        eventually("the step to begin", || guest.path("begun").exists());
        let mut waiting = guest.start(Work {
            script: "touch @/wrong",
            digest: "d2",
            run: "r2",
            ..WORK
        });
        std::thread::sleep(Duration::from_millis(500));
        let runner = child_of(waiting.id());
        waiting.kill().unwrap();
        waiting.wait().unwrap();
        eventually("the runner to give up", || !lives(runner));
        guest.write("go", "");
        assert_eq!(end(live).code, 0);
        assert!(!guest.path("wrong").exists());
    });
}

#[test]
fn a_script_whose_keepers_were_killed_does_not_outlive_the_next_run() {
    in_each_shell(|guest| {
        let mut dead = guest.start(Work {
            script: SLEEPER,
            ..WORK
        });
        let (child, shell) = (guest.number("child"), guest.number("shell"));
        let runner = child_of(dead.id());
        kill(runner);
        kill(guest.owner("pid").unwrap().parse().unwrap());
        let _ = dead.wait();
        assert!(lives(child) && lives(shell));
        // A busybox's `timeout` may hold the lock for a moment longer.
        eventually("the lock to be free", || guest.lock_is_free());
        let next = guest.run(Work { run: "r2", ..WORK });
        assert!(
            next.code == 0 && next.output.contains("nodegraft-step:ended"),
            "{}",
            next.output
        );
        assert!(!lives(child) && !lives(shell));
    });
}

#[test]
fn a_deadline_is_told_from_a_kill_for_want_of_memory() {
    in_each_shell(|guest| {
        let late = guest.run(Work {
            script: SLEEPER,
            seconds: 1,
            ..WORK
        });
        assert!(
            late.code != 0 && late.output.contains("nodegraft-step:late"),
            "{}",
            late.output
        );
        assert!(!lives(guest.number("child")) && guest.lock_is_free());
        // Its own use of `timeout` is not ours.
        let own = guest.run(Work {
            script: "timeout 0.1 sleep 5",
            run: "r2",
            ..WORK
        });
        assert_eq!((own.code, own.output.as_str()), (124, ""));
        if guest.shell.ends_with("busybox") {
            // It reads the kernel's log by itself.
            return;
        }
        let earlier = "[    0.100000] Out of memory: Killed process 1 (earlier) total-vm:1kB\n[    0.200000] other\n";
        guest.write("dmesg", earlier);
        let killed = guest.run(Work {
            script: "kill -KILL $$",
            run: "r3",
            ..WORK
        });
        assert_eq!(
            (killed.code, killed.output.contains("nodegraft-step:")),
            (137, false),
            "{}",
            killed.output
        );
        let up: f64 = fs::read_to_string("/proc/uptime")
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        guest
            .write("dmesg", &format!("{earlier}[{:12.6}] Memory cgroup out of memory: Killed process 42 (tail) total-vm:9kB\n", up + 60.0));
        let killed = guest.run(Work {
            script: "kill -KILL $$",
            run: "r4",
            ..WORK
        });
        assert_eq!(killed.code, 137);
        assert_eq!(
            killed.output.trim(),
            "nodegraft-step:memory Memory cgroup out of memory: Killed process 42 (tail) total-vm:9kB"
        );
    });
}

#[test]
fn a_service_is_restarted_when_it_runs_with_something_else_and_only_then() {
    with_services(|guest| {
        let configure = |text: &str, run: &str| {
            let ran = guest.run(Work {
                script: &format!("echo {text} >@/config"),
                run,
                service: true,
                ..WORK
            });
            assert_eq!(ran.code, 0, "{}", ran.output);
            guest.restarts()
        };
        guest.write("state", "inactive");
        assert_eq!(configure("a", "r1"), 0, "what does not run is not started");
        assert!(guest.read("calls").unwrap().contains("daemon-reload"));
        assert_eq!(guest.read("steps/the-service.started"), None);
        guest.write("state", "active");
        assert_eq!(configure("a", "r2"), 1, "nobody knows what it read");
        assert_eq!(configure("a", "r3"), 1);
        assert_eq!(configure("b", "r4"), 2);
        // Started by somebody else meanwhile, and so with what nobody knows.
        guest.write("starts", "77");
        assert_eq!(configure("b", "r5"), 3);
        assert_eq!(configure("b", "r6"), 3);
        // One that starts and dies, over and over, is not left to it.
        guest.write("state", "activating");
        assert_eq!(configure("b", "r7"), 4);
    });
}

#[test]
fn a_large_file_counts_by_its_inode_and_a_directory_by_all_below() {
    with_services(|guest| {
        let configure = |script: &str, run: &str| {
            let ran = guest.run(Work {
                script,
                run,
                service: true,
                ..WORK
            });
            assert_eq!(ran.code, 0, "{}", ran.output);
            guest.restarts()
        };
        assert_eq!(
            configure(
                "mkdir -p @/config; head -c 2000000 /dev/zero >@/config/big; echo a >@/config/a",
                "r1"
            ),
            1
        );
        assert_eq!(configure("true", "r2"), 1);
        assert_eq!(
            configure(
                "cp -p @/config/big @/config/new; mv @/config/new @/config/big",
                "r3"
            ),
            2
        );
        assert_eq!(configure("echo b >@/config/a", "r4"), 3);
        assert_eq!(configure("rm @/config/a", "r5"), 4);
        assert_eq!(configure("true", "r6"), 4);
    });
}

#[test]
fn a_service_that_does_not_come_up_is_the_steps_failure() {
    with_services(|guest| {
        guest.write("broken", "");
        let work = Work {
            script: "echo a >@/config",
            service: true,
            ..WORK
        };
        for (restarts, run) in [(1, "r1"), (2, "r2")] {
            guest.write("state", "active");
            let ran = guest.run(Work { run, ..work });
            assert_eq!(
                (ran.code, guest.restarts(), guest.read("steps/1-work.done")),
                (1, restarts, None)
            );
            assert!(
                ran.output.contains("the service says why"),
                "{}",
                ran.output
            );
            assert!(
                ran.output
                    .contains("nodegraft-step:fault the service the-service does not come up"),
                "{}",
                ran.output
            );
        }
        fs::remove_file(guest.path("broken")).unwrap();
        guest.write("type", "simple");
        guest.write("flapping", "");
        guest.write("state", "active");
        assert_eq!(
            guest.run(Work { run: "r3", ..work }).code,
            1,
            "it is active each time one looks, and each time another one"
        );
        fs::remove_file(guest.path("flapping")).unwrap();
        assert_eq!(guest.run(Work { run: "r4", ..work }).code, 0);
    });
}

#[test]
fn a_run_killed_between_the_configuration_and_the_restart_is_repeated() {
    with_services(|guest| {
        let work = Work {
            script: "echo a >@/config",
            service: true,
            ..WORK
        };
        assert_eq!(guest.run(work).code, 0);
        guest.write("hang", "");
        let mut killed = guest.start(Work {
            script: "echo b >@/config",
            digest: "d2",
            run: "r2",
            ..work
        });
        eventually("the runner to come to systemd", || {
            guest
                .read("calls")
                .unwrap()
                .matches("daemon-reload")
                .count()
                == 2
        });
        let runner = child_of(killed.id());
        let systemctl = child_of(child_of(runner));
        for process in [killed.id(), runner, systemctl] {
            kill(process);
        }
        let _ = killed.wait();
        assert_eq!(
            (guest.restarts(), guest.read("steps/1-work.done")),
            (1, None),
            "written, and not in effect"
        );
        fs::remove_file(guest.path("hang")).unwrap();
        assert_eq!(
            guest
                .run(Work {
                    script: "echo b >@/config",
                    digest: "d2",
                    run: "r3",
                    ..work
                })
                .code,
            0
        );
        assert_eq!(
            (guest.restarts(), guest.read("steps/1-work.done")),
            (2, Some("d2".into()))
        );
    });
}
