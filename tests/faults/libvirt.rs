//! libvirt fails at the n-th call of `up` and of `down`; the pool is full.

use super::bed::{Bed, Follow, Verdict};
use super::preload::{calls, fault};
use super::{Row, places, up_through};
use crate::fixture::Exit;

/// `mode@n` for each n that is to be tried, named by the call that is there.
fn faults(
    mode: &str,
    calls: &[String],
    sample: usize,
    shift: usize,
) -> Vec<(String, Vec<(&'static str, String)>)> {
    let place = |n: usize| {
        (
            format!("{n} {}", calls[n - 1]),
            fault(&format!("{mode}@{n}")),
        )
    };
    places(calls.len(), sample, shift)
        .into_iter()
        .map(place)
        .collect()
}

fn every_call_of_up(mode: &str, cluster: &str, ip: &str, sample: usize, shift: usize) {
    let bed = Bed::new(cluster, ip);
    let mut row = Row::new(format!("libvirt, `up`: {mode}"));
    let calls = calls(&mut bed.command(&["up"]));
    bed.down();
    up_through(&bed, &mut row, &faults(mode, &calls, sample, shift));
    row.end();
}

#[test]
#[ignore = "needs the lab: make faults"]
fn up_is_killed_at_a_call() {
    every_call_of_up("kill", "fkill", "192.168.3.210", 5, 0);
}

#[test]
#[ignore = "needs the lab: make faults"]
fn up_gets_an_error() {
    every_call_of_up("error", "ferror", "192.168.3.211", 3, 1);
}

#[test]
#[ignore = "needs the lab: make faults"]
fn up_loses_its_connection() {
    every_call_of_up("lost", "flost", "192.168.3.212", 3, 2);
}

/// What was asked for is done, but the answer never comes.
#[test]
#[ignore = "needs the lab: make faults"]
fn up_loses_an_answer() {
    every_call_of_up("late", "flate", "192.168.3.213", 3, 3);
}

/// Every call of `down`, in each way. The node is one that was killed as it was to be started: it need not boot.
#[test]
#[ignore = "needs the lab: make faults"]
fn down_fails_at_a_call() {
    let bed = Bed::new("fdown", "192.168.3.214");
    bed.claim();
    let calls = calls(&mut bed.command(&["down"]));
    let mut rows = Vec::new();
    for (shift, mode) in ["kill", "error", "lost", "late"].into_iter().enumerate() {
        let mut row = Row::new(format!("libvirt, `down`: {mode}"));
        for (index, (place, env)) in faults(mode, &calls, 4, shift).into_iter().enumerate() {
            bed.claim();
            let mut verdict = Verdict::default();
            let down = bed.run_with(&["down"], &env);
            let ends = [Exit::Done, Exit::Unfit, Exit::NodesFailed, Exit::Leftover];
            verdict.may_be_killed("down with the fault", &down, &ends);
            // Booting what was to go is the rarer road, and the dearer one.
            let follow = if index % 4 == 3 {
                Follow::Up
            } else {
                Follow::Down
            };
            if follow == Follow::Up {
                bring_back(&bed, &mut verdict);
            }
            bed.after(follow, &mut verdict);
            row.add(&place, verdict);
        }
        rows.push(row);
    }
    Row::end_all(rows);
}

/// A `down` that got as far as the disk leaves a node that `up` refuses to go on with; what it names as the remedy is one.
fn bring_back(bed: &Bed, verdict: &mut Verdict) {
    let up = bed.run(&["up"]);
    if up.code == Some(5) && up.stderr.contains("is gone from the pool") {
        let anew = bed.run(&["up", "--recreate", &bed.node, "--yes"]);
        verdict.expect("up --recreate", &anew, &[Exit::Done]);
    } else {
        verdict.expect("up after down", &up, &[Exit::Done]);
    }
}

/// The pool is filled by others just before a call: before each volume is made, before the seed is written, before the start.
#[test]
#[ignore = "needs the lab: make faults"]
fn the_pool_is_full() {
    let target = crate::in_lab::state().join("fullpool");
    let bed = Bed::on(
        "ffull",
        "192.168.3.215",
        &crate::in_lab::libvirt::uri(),
        "fullpool",
        target.clone(),
    );
    bed.edit(|spec| spec.set("defaults.deadlines.boot", "20s"));
    let filler = target.join("filler").display().to_string();
    let mut row = Row::new("pool full");
    let places = [
        "virStorageVolCreateXML:1",
        "virStorageVolCreateXML:2",
        "virStreamSend:1",
        "virDomainResume:1",
    ];
    for (index, place) in places.into_iter().enumerate() {
        let mut env = fault(&format!("run@{place}"));
        // All that is free, but for a page or two.
        let fill = format!(
            "fallocate -l $(( $(stat -f -c '%a * %S' {0}) )) {1} || dd if=/dev/zero of={1} bs=64K 2>/dev/null || true",
            target.display(),
            filler
        );
        env.push(("FAULT_RUN", fill));
        let mut verdict = Verdict::default();
        let up = bed.run_with(&["up"], &env);
        verdict.expect(
            "up into a full pool",
            &up,
            &[Exit::Unfit, Exit::NodesFailed],
        );
        std::fs::remove_file(&filler).unwrap();
        bed.after(
            if index % 2 == 0 {
                Follow::Up
            } else {
                Follow::Down
            },
            &mut verdict,
        );
        row.add(place, verdict);
    }
    row.end();
}
