//! Two runs at once, of the same and of different clusters; one cluster on two hosts.

use std::time::Duration;

use super::Row;
use super::bed::{Bed, Follow, Verdict, variable, virsh};
use crate::in_lab::state;

const LIMIT: Duration = Duration::from_secs(240);

/// Two users with the same spec: one gets the node, the other a reason, and keeps off it afterwards.
#[test]
#[ignore = "needs the lab: make faults"]
fn two_runs_of_the_same_cluster() {
    let bed = Bed::new("fsame", "192.168.3.222");
    let mut row = Row::new("two runs at once: same cluster");
    let users: Vec<_> = ["one", "two"]
        .iter()
        .map(|name| {
            vec![(
                "NODEGRAFT_STATE_DIR",
                bed.dir.path().join(name).display().to_string(),
            )]
        })
        .collect();
    let mut verdict = Verdict::default();
    let runs: Vec<_> = users.iter().map(|env| bed.start(&["up"], env)).collect();
    let ends: Vec<_> = runs.into_iter().map(|run| run.end(LIMIT)).collect();
    for end in &ends {
        verdict.expect("up beside another", end, &[0, 4, 5]);
    }
    let won: Vec<usize> = (0..2).filter(|user| ends[*user].code == Some(0)).collect();
    if let [winner] = won[..] {
        verdict.expect(
            "the other's next up",
            &bed.run_with(&["up"], &users[1 - winner]),
            &[4, 5],
        );
        verdict.expect(
            "the winner's next up",
            &bed.run_with(&["up"], &users[winner]),
            &[0],
        );
    } else {
        let said: Vec<_> = ends
            .iter()
            .map(|end| format!("exit {:?}:\n{}", end.code, end.stderr))
            .collect();
        verdict.wrong.push(format!(
            "{} of two users got the node; {}",
            won.len(),
            said.join("\n")
        ));
    }
    let winner = won.first().copied().unwrap_or_default();
    verdict.expect(
        "the winner's down",
        &bed.run_with(&["down"], &users[winner]),
        &[0],
    );
    bed.after(Follow::Down, &mut verdict);
    row.add("two users", verdict);
    row.end();
}

#[test]
#[ignore = "needs the lab: make faults"]
fn two_runs_of_different_clusters() {
    let beds = [
        Bed::new("fleft", "192.168.3.223"),
        Bed::new("fright", "192.168.3.224"),
    ];
    let mut row = Row::new("two runs at once: different clusters");
    let both = |args: &[&str], what: &str| {
        let runs: Vec<_> = beds.iter().map(|bed| bed.start(args, &[])).collect();
        runs.into_iter()
            .map(|run| {
                let mut verdict = Verdict::default();
                verdict.expect(what, &run.end(LIMIT), &[0]);
                verdict
            })
            .collect::<Vec<_>>()
    };
    for verdict in both(&["up"], "up beside another")
        .into_iter()
        .chain(both(&["down"], "down beside another"))
    {
        row.add("both", verdict);
    }
    for bed in &beds {
        let mut verdict = Verdict {
            left: bed.left(),
            ..Verdict::default()
        };
        bed.after(Follow::Down, &mut verdict);
        row.add("afterwards", verdict);
    }
    row.end();
}

/// One spec on two hosts: what is done on the one is nothing to the other.
#[test]
#[ignore = "needs the lab: make faults"]
fn one_cluster_on_two_hosts() {
    let first = Bed::new("fhosts", "192.168.3.225");
    let second = Bed::on(
        "fhosts",
        "192.168.3.226",
        &variable("NODEGRAFT_LAB_URI2"),
        "kvmimage",
        state().join("second/pool"),
    );
    // The names would give both the same MAC, and these two hosts share a bridge.
    second.edit(|spec| {
        spec.replace(
            "192.168.3.226/24",
            "192.168.3.226/24, mac: '52:54:00:03:02:26'",
        )
    });
    let mut row = Row::new("two hosts, one cluster");
    let mut verdict = Verdict::default();
    for bed in [&first, &second] {
        verdict.expect("up", &bed.run(&["up"]), &[0]);
    }
    let id = || virsh(&first.uri, &["domid", &first.node]);
    let (before, volumes) = (id(), virsh(&first.uri, &["vol-list", "kvmimage"]));
    second.after(Follow::Down, &mut verdict);
    if id() != before || virsh(&first.uri, &["vol-list", "kvmimage"]) != volumes {
        verdict
            .touched
            .push("`down` on the second host changed the first".into());
    }
    verdict.expect("up again on the first host", &first.run(&["up"]), &[0]);
    first.after(Follow::Down, &mut verdict);
    row.add("up, up, down, down", verdict);
    row.end();
}
