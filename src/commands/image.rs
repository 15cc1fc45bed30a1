//! `image prepare`: a template volume for images without cloud-init. An overlay is edited and then copied whole, so that
//! the new volume is there complete or not at all, and the template stays as it is.

use std::path::Path;

use super::{Setting, Verdict};
use crate::cli;
use crate::core::error::{Error, Result};
use crate::core::finding::State;
use crate::core::first_boot;
use crate::core::mark::{Claimed, Mark, escape};
use crate::core::ownership::{Owner, may_be_template};
use crate::core::spec::VirtType;
use crate::rooms::guestfs;
use crate::rooms::libvirt::Host;
use crate::rooms::libvirt::storage::{Pool, Volume};
use crate::rooms::process;
use crate::stages::preflight::{injection, virt_type};
use crate::ui;

pub async fn prepare(args: &cli::Prepare, setting: &Setting) -> Result<Verdict> {
    let host = Host::open(&args.host.uri).await?;
    let (pool, source) = (&args.host.pool, &args.volume);
    let target = args.target.clone().unwrap_or_else(|| prepared_name(source));
    let found = active_pool(&host, pool).await?;
    let Some(template) = host.volume(pool, source).await? else {
        let templates = template_names(&found);
        let has = if templates.is_empty() {
            "no qcow2 volume".to_owned()
        } else {
            templates.join(", ")
        };
        return Err(
            Error::unfit(format!("the pool {pool} has no volume {source}"))
                .with_help(format!("it has: {has}")),
        );
    };
    if host.volume(pool, &target).await?.is_some() {
        return Err(Error::unfit(format!("the pool {pool} has a volume {target} already"))
            .with_help(format!("use it, or name another with --as; to make it anew: virsh vol-delete --pool {pool} {target}")));
    }
    let finding = injection(&host);
    if finding.state == State::Bad {
        return Err(Error::unfit(finding.what).with_help(finding.help.unwrap_or_default()));
    }
    let owner = Owner::new(PREPARE, &target)?;
    claim(&host, &found, &owner).await?;
    let made = make(&host, args, setting, &template, &owner.disk(), &target).await;
    let removed = release(&host, &owner, pool).await;
    made?;
    removed?;
    ui::print(&format!("{target}\n"))?;
    Ok(Verdict::Done)
}

/// Owns the working volumes. No cluster can have a dot in its name.
const PREPARE: &str = "image.prepare";

/// The claim on a working volume is a domain, as for nodes: it is never started. One that a run left which was killed is
/// taken over with what it lists.
async fn claim(host: &Host, pool: &Pool, owner: &Owner) -> Result<()> {
    let name = format!("nodegraft-prepare-{}", owner.node);
    if let Some(uuid) = host.uuid_of(&name).await?
        && let Some(earlier) = host.domain(&uuid).await?
    {
        let theirs = earlier
            .owner()
            .filter(|theirs| theirs.is_node(PREPARE, &owner.node));
        let Some(theirs) = theirs else {
            return Err(Error::unfit(format!(
                "the name {name} is taken by a domain that is not ours"
            ))
            .with_help("name another volume with --as"));
        };
        let by = earlier
            .mark
            .as_ref()
            .and_then(|mark| mark.by.as_deref())
            .unwrap_or_default();
        if process::may_live(by) {
            return Err(Error::unfit(format!(
                "another `image prepare` is making {} (host, process and start: {by})",
                owner.node
            ))
            .with_help(format!(
                "wait for it; if it is dead: virsh -c '{}' undefine {name}",
                host.uri()
            )));
        }
        // In the pool that it names, which need not be the one given now.
        let listed = earlier.mark.as_ref().and_then(|mark| mark.volumes.first());
        release(
            host,
            theirs,
            listed.map_or(&pool.name, |volume| &volume.pool),
        )
        .await?;
    }
    let volumes = vec![Claimed {
        pool: pool.name.clone(),
        name: owner.disk(),
    }];
    let mark = Mark {
        by: Some(process::this()),
        ..Mark::new(owner.clone(), "", volumes)
    };
    let xml = format!(
        "<domain type='qemu'><name>{}</name><uuid>{}</uuid><metadata>{}</metadata><memory unit='MiB'>64</memory>\
         <os><type arch='x86_64'>hvm</type></os></domain>",
        escape(&name),
        owner.uuid(),
        mark.element()
    );
    host.define_domain(&name, xml).await
}

/// The working volume first: the claim tells of it as long as it may be there.
async fn release(host: &Host, owner: &Owner, pool: &str) -> Result<()> {
    host.delete_volume(pool, &owner.disk()).await?;
    host.undefine(&owner.uuid()).await.map(drop)
}

async fn make(
    host: &Host,
    args: &cli::Prepare,
    setting: &Setting,
    template: &Volume,
    work: &str,
    target: &str,
) -> Result<()> {
    let pool = &args.host.pool;
    host.create_overlay(pool, work, template, template.capacity)
        .await?;
    let overlay = host
        .volume(pool, work)
        .await?
        .ok_or_else(|| Error::unfit(format!("{work} vanished from the pool {pool}")))?;
    let kvm = virt_type(host, VirtType::Auto).await?.0 == "kvm";
    let unit = first_boot::unit(&setting.templates()?)?;
    ui::note(&format!(
        "putting the first-boot unit into a copy of {}",
        template.name
    ));
    tokio::select! {
        biased;
        () = setting.stop.cancelled() => return Err(Error::interrupted()),
        done = guestfs::add(Path::new(&overlay.path), &unit, kvm, ui::note) => done?,
    }
    ui::note(&format!("copying it to {target}"));
    host.copy_volume(pool, target, work).await
}

pub async fn active_pool(host: &Host, name: &str) -> Result<Pool> {
    host.pool(name, |_| false)
        .await?
        .filter(|pool| pool.active)
        .ok_or_else(|| {
            Error::unfit(format!("the pool {name} is not there, or not active"))
                .with_help("see: virsh pool-list --all; name one with --pool")
        })
}

/// The volumes that VMs can be cloned from: qcow2, and not ours.
pub fn template_names(pool: &Pool) -> Vec<String> {
    let mut names = pool.names.clone();
    names.retain(|name| name.ends_with(".qcow2") && may_be_template(name));
    names.sort();
    names
}

/// In the names of templates that have the unit.
pub const PREPARED: &str = ".firstboot";

/// `CentOS7.6.1810.x86_64.qcow2` becomes `CentOS7.6.1810.x86_64.firstboot.qcow2`.
fn prepared_name(volume: &str) -> String {
    match volume.strip_suffix(".qcow2") {
        Some(stem) => format!("{stem}{PREPARED}.qcow2"),
        None => format!("{volume}{PREPARED}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_prepared_template_is_named_after_its_source() {
        assert_eq!(
            super::prepared_name("CentOS7.6.1810.x86_64.qcow2"),
            "CentOS7.6.1810.x86_64.firstboot.qcow2"
        );
        assert_eq!(super::prepared_name("disk"), "disk.firstboot");
    }
}
