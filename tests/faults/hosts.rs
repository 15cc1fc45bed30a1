//! Two runs at once, of the same and of different clusters; one cluster on two hosts.

use super::Row;
use super::bed::{Bed, Follow, Verdict};
use crate::fixture::Exit;
use crate::in_lab::libvirt::{POOL, uri2, virsh_on};
use crate::in_lab::state;

/// Two users with the same spec: one gets the node, the other a reason, and keeps off it afterwards.
#[test]
#[ignore = "needs the lab: make faults"]
fn two_runs_of_the_same_cluster() {
    let bed = Bed::new("fsame", "192.168.3.222");
    let mut row = Row::new("two runs at once: same cluster");
    let users: Vec<_> = ["one", "two"]
        .iter()
        .map(|name| vec![("NODEGRAFT_STATE_DIR", bed.file(name))])
        .collect();
    let mut verdict = Verdict::default();
    let runs: Vec<_> = users
        .iter()
        .map(|env| bed.start_with(&["up"], env))
        .collect();
    let ends: Vec<_> = runs.into_iter().map(|run| bed.end(run)).collect();
    for end in &ends {
        verdict.expect(
            "up beside another",
            end,
            &[Exit::Done, Exit::Unfit, Exit::NodesFailed],
        );
    }
    let won: Vec<usize> = (0..2)
        .filter(|user| ends[*user].code == Some(Exit::Done as i32))
        .collect();
    if let [winner] = won[..] {
        verdict.expect(
            "the other's next up",
            &bed.run_with(&["up"], &users[1 - winner]),
            &[Exit::Unfit, Exit::NodesFailed],
        );
        verdict.expect(
            "the winner's next up",
            &bed.run_with(&["up"], &users[winner]),
            &[Exit::Done],
        );
    } else {
        let said: Vec<_> = ends.iter().map(ToString::to_string).collect();
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
        &[Exit::Done],
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
        let runs: Vec<_> = beds.iter().map(|bed| bed.start(args)).collect();
        runs.into_iter()
            .zip(&beds)
            .map(|(run, bed)| {
                let mut verdict = Verdict::default();
                verdict.expect(what, &bed.end(run), &[Exit::Done]);
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
        &uri2(),
        POOL,
        state().join("second/pool"),
    )
    // The names would give both the same MAC, and these two hosts share a bridge.
    .with(|spec| spec.add("nodes.0.mac", "52:54:00:03:02:26"));
    let mut row = Row::new("two hosts, one cluster");
    let mut verdict = Verdict::default();
    for bed in [&first, &second] {
        verdict.expect("up", &bed.run(&["up"]), &[Exit::Done]);
    }
    let id = || virsh_on(&first.uri, &["domid", &first.node]);
    let (before, volumes) = (id(), virsh_on(&first.uri, &["vol-list", POOL]));
    second.after(Follow::Down, &mut verdict);
    if id() != before || virsh_on(&first.uri, &["vol-list", POOL]) != volumes {
        verdict
            .touched
            .push("`down` on the second host changed the first".into());
    }
    verdict.expect(
        "up again on the first host",
        &first.run(&["up"]),
        &[Exit::Done],
    );
    first.after(Follow::Down, &mut verdict);
    row.add("up, up, down, down", verdict);
    row.end();
}
