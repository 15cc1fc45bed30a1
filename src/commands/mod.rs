//! One file per command. Each tells its story: load the spec, plan, open the rooms, walk the list.

pub mod access;
pub mod create;
pub mod doctor;
pub mod down;
pub mod image;
pub mod join;
pub mod kubeconfig;
pub mod plan;
pub mod session;
pub mod status;
pub mod templates;
pub mod token;
pub mod up;

use std::path::Path;

use tokio_util::sync::CancellationToken;

use crate::cli::{ClusterArgs, Output, SpecArgs};
use crate::core::error::{Context, Error, Kind, Result};
use crate::core::event::Subject;
use crate::core::journal::Journal;
use crate::core::plan::{ClusterPlan, ClusterSource, Plan};
use crate::core::spec::{Outline, Spec, rooted};
use crate::core::template::Templates;
use crate::pipeline::runner::Walk;
use crate::pipeline::stage::{Events, Stage};
use crate::rooms::cluster::Cluster;
use crate::rooms::libvirt::Host;
use crate::rooms::ssh::{Identity, Session, Target, Trust};
use crate::rooms::state::{StateDir, expand_home, own_public_keys};
use crate::rooms::{files, template_dir};
use crate::stages::Opened;
use crate::stages::steps::Shared;

/// How a command came out that did not fail, or has reported by itself what did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    Done,
    Reported(Kind),
}

/// What every command is given besides its own arguments.
pub struct Setting {
    pub events: Events,
    pub stop: CancellationToken,
    pub output: Output,
    pub templates: Option<std::path::PathBuf>,
}

impl Setting {
    pub fn templates(&self) -> Result<Templates> {
        match &self.templates {
            None => Ok(Templates::built_in()),
            Some(dir) => Templates::with(
                template_dir::read(dir).map_err(|error| error.as_kind(Kind::Refused))?,
            ),
        }
    }

    /// A walk through a list, with this command's voice and stop.
    pub fn walk<'a, C>(
        &self,
        stages: &'a [Box<dyn Stage<C>>],
        on: &'a mut C,
        subject: Subject,
        journal: &'a Journal,
    ) -> Walk<'a, C> {
        Walk {
            stages,
            on,
            subject,
            events: self.events.clone(),
            stop: self.stop.clone(),
            journal,
        }
    }

    /// Reads, checks and plans a spec. Touches nothing.
    pub fn plan(&self, args: &SpecArgs) -> Result<Plan> {
        Plan::new(&load_spec(&args.file)?, self.templates()?, &args.nodes)
    }
}

pub fn load_spec(file: &Path) -> Result<Spec> {
    let spec = Spec::parse(&read_spec(file)?, &file.display().to_string())?;
    Ok(spec.rooted(file.parent().unwrap_or(Path::new(""))))
}

/// Of a spec, what a removal needs.
pub fn load_outline(file: &Path) -> Result<Outline> {
    let outline = Outline::parse(&read_spec(file)?, &file.display().to_string())?;
    Ok(outline.rooted(file.parent().unwrap_or(Path::new(""))))
}

fn read_spec(file: &Path) -> Result<String> {
    files::read(file)
        .doing(format!("reading the spec {}", file.display()))
        .map_err(|error| {
            error
                .with_help("write one as the README shows, or name it with -f FILE")
                .as_kind(Kind::Refused)
        })
}

/// Opens every room a pipeline needs. Changes nothing but this machine's own state directory.
pub async fn open(plan: Plan, recreate: Vec<String>) -> Result<Opened> {
    let state = StateDir::open(&plan.cluster.name)?;
    let key = state.login_key(plan.ssh_key.as_deref())?;
    let host = Host::open(&plan.host.uri).await?;
    let cluster = cluster_if_any(&plan.cluster).await?;
    let mut authorized_keys = vec![key.public.clone()];
    authorized_keys.extend(plan.authorized_keys.iter().cloned());
    authorized_keys.extend(own_public_keys());
    authorized_keys.dedup();
    Ok(Opened {
        plan,
        host,
        cluster,
        state,
        key,
        authorized_keys,
        recreate,
        steps: Shared::new()?,
        sight: None,
    })
}

/// The cluster that the flags name, a spec's or a kubeconfig's: its terms, and a connection.
pub async fn joined_cluster(
    args: &ClusterArgs,
    setting: &Setting,
) -> Result<(ClusterPlan, Cluster)> {
    let planned = match &args.file {
        Some(file) => Plan::new(&load_spec(file)?, setting.templates()?, &[])?.cluster,
        None => ClusterPlan::of_kubeconfig(
            &kubeconfig_or_default(args.kubeconfig.as_deref()),
            args.context.clone(),
        ),
    };
    let source = planned.source.clone().ok_or_else(|| {
        Error::usage("this spec joins no cluster").with_help("name one with --kubeconfig")
    })?;
    let cluster = open_cluster(&source).await?;
    Ok((planned, cluster))
}

/// What the flag says, else `KUBECONFIG`, which may be a list, else kubectl's default.
pub fn kubeconfig_or_default(flag: Option<&str>) -> String {
    let environment = std::env::var("KUBECONFIG").unwrap_or_default();
    let named = flag.unwrap_or(&environment);
    if named.is_empty() {
        return "~/.kube/config".to_owned();
    }
    // A spec that keeps it lies in another directory.
    let here = std::env::current_dir().unwrap_or_default();
    rooted(named, &here)
}

/// The connection alone.
pub async fn cluster_of(args: &ClusterArgs, setting: &Setting) -> Result<Cluster> {
    joined_cluster(args, setting)
        .await
        .map(|(_, cluster)| cluster)
}

/// The planned cluster, or `None` where nothing joins.
pub async fn cluster_if_any(planned: &ClusterPlan) -> Result<Option<Cluster>> {
    match &planned.source {
        Some(source) => open_cluster(source).await.map(Some),
        None => Ok(None),
    }
}

/// From a kubeconfig on this machine, or admin.conf and ca.crt of the control plane.
pub async fn open_cluster(source: &ClusterSource) -> Result<Cluster> {
    match source {
        ClusterSource::Kubeconfig { path, context } => {
            let paths = std::env::split_paths(path).filter(|path| !path.as_os_str().is_empty());
            let paths: Vec<_> = paths
                .map(|path| expand_home(&path.to_string_lossy()))
                .collect();
            Cluster::from_files(&paths, context.as_deref()).await
        }
        ClusterSource::ControlPlane(at) => {
            let (kubeconfig, ca) = read_control_plane(at).await?;
            let connected = Cluster::from_text(
                &kubeconfig,
                &format!("{at}:/etc/kubernetes/admin.conf"),
                None,
            )
            .await?;
            if connected.ca_pem.split_whitespace().collect::<String>()
                != ca.split_whitespace().collect::<String>()
            {
                return Err(Error::unfit(format!(
                    "on {at}, /etc/kubernetes/pki/ca.crt is not the CA of admin.conf"
                ))
                .with_help(
                    "the control plane's files are of two clusters; renew admin.conf there",
                ));
            }
            Ok(connected)
        }
    }
}

async fn read_control_plane(at: &str) -> Result<(String, String)> {
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(20);
    let target = own_login(at);
    let shell = target.command();
    let session = Session::open(target, LIMIT)
        .await
        .doing(format!("logging in to the control plane {at}"))
        .map_err(|error| error.with_help(format!("does `{shell}` work without a password?")))?;
    let read = async |path: &str| {
        session
            .output(&format!("cat {path}"), LIMIT)
            .await
            .doing(format!("reading {path} on {at}"))
    };
    Ok((
        read("/etc/kubernetes/admin.conf").await?,
        read("/etc/kubernetes/pki/ca.crt").await?,
    ))
}

/// `[user@]host[:port]`, with the user's own keys and known_hosts.
pub fn own_login(at: &str) -> Target {
    let (user, rest) = at.split_once('@').unwrap_or(("root", at));
    let (host, port) = match rest.rsplit_once(':') {
        // An IPv6 address without brackets has no port behind its last colon.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            (host, port.parse().unwrap_or(22))
        }
        _ => (rest, 22),
    };
    let dir = expand_home("~/.ssh");
    Target {
        host: host.trim_matches(['[', ']']).to_owned(),
        port,
        user: user.to_owned(),
        trust: Trust::KnownHosts(dir.join("known_hosts")),
        identity: Identity::Own { dir },
    }
}
