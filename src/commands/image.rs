//! `image prepare`: a template volume for images without cloud-init. An overlay is edited and then copied whole, so that
//! the new volume is there complete or not at all, and the template stays as it is.

use std::path::Path;

use super::Setting;
use crate::cli;
use crate::error::{Error, Exit, Result};
use crate::first_boot;
use crate::guestfs;
use crate::libvirt::Host;
use crate::libvirt::storage::{Pool, Volume};
use crate::spec::VirtType;
use crate::stages::preflight::{State, injection, virt_type};
use crate::ui;

pub async fn prepare(args: &cli::Prepare, setting: &Setting) -> Result<Exit> {
    let host = Host::open(&args.host.uri).await?;
    let (pool, source) = (&args.host.pool, &args.volume);
    let target = args.target.clone().unwrap_or_else(|| prepared_name(source));
    let unfit = |what: String| Error::new(what).with_exit(Exit::Unfit);
    active_pool(&host, pool).await?;
    let Some(template) = host.volume(pool, source).await? else {
        let templates = template_names(&host, pool).await?;
        let has = if templates.is_empty() { "no qcow2 volume".to_owned() } else { templates.join(", ") };
        return Err(unfit(format!("the pool {pool} has no volume {source}")).with_help(format!("it has: {has}")));
    };
    if host.volume(pool, &target).await?.is_some() {
        return Err(unfit(format!("the pool {pool} has a volume {target} already"))
            .with_help(format!("use it, or name another with --as; to make it anew: virsh vol-delete --pool {pool} {target}")));
    }
    let finding = injection(&host);
    if finding.state == State::Bad {
        return Err(unfit(finding.what).with_help(finding.help.unwrap_or_default()));
    }
    // Only an earlier run that was killed leaves it.
    let work = format!("nodegraft.image.{target}");
    host.delete_volume(pool, &work).await?;
    let made = make(&host, args, setting, &template, &work, &target).await;
    let removed = host.delete_volume(pool, &work).await;
    made?;
    removed?;
    ui::print(&format!("{target}\n"))?;
    Ok(Exit::Done)
}

async fn make(host: &Host, args: &cli::Prepare, setting: &Setting, template: &Volume, work: &str, target: &str) -> Result<()> {
    let pool = &args.host.pool;
    host.create_overlay(pool, work, template, template.capacity).await?;
    let overlay = host.volume(pool, work).await?.ok_or_else(|| Error::new(format!("{work} vanished from the pool {pool}")))?;
    let kvm = virt_type(host, VirtType::Auto).await?.0 == "kvm";
    let unit = first_boot::unit(&setting.templates()?)?;
    ui::note(&format!("putting the first-boot unit into a copy of {}", template.name));
    tokio::select! {
        biased;
        () = setting.stop.cancelled() => return Err(Error::interrupted()),
        done = guestfs::add(Path::new(&overlay.path), &unit, kvm, ui::note) => done?,
    }
    ui::note(&format!("copying it to {target}"));
    host.copy_volume(pool, target, work).await
}

pub async fn active_pool(host: &Host, name: &str) -> Result<Pool> {
    host.pool(name).await?.filter(|pool| pool.active).ok_or_else(|| {
        Error::new(format!("the pool {name} is not there, or not active"))
            .with_help("see: virsh pool-list --all; name one with --pool")
            .with_exit(Exit::Unfit)
    })
}

/// The volumes that VMs can be cloned from: qcow2, and not ours.
pub async fn template_names(host: &Host, pool: &str) -> Result<Vec<String>> {
    let mut names = host.volume_names(pool).await?;
    names.retain(|name| name.ends_with(".qcow2") && !name.starts_with("nodegraft."));
    names.sort();
    Ok(names)
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
        assert_eq!(super::prepared_name("CentOS7.6.1810.x86_64.qcow2"), "CentOS7.6.1810.x86_64.firstboot.qcow2");
        assert_eq!(super::prepared_name("disk"), "disk.firstboot");
    }
}
