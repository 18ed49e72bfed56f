//! `lab up` and `lab down`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sockpath_helper::accelerate::Released;
use sockpath_protocol::lab::Overlay;
use tokio::signal::unix::{SignalKind, signal};

use super::netns_names::{self, Named};
use super::plan::{self, Instance, NODES, PODS, SERVICES};
use super::preflight::{fault, require_root};
use super::rules::{Family, Restore};
use super::state::{self, Locked, Phase};
use super::{cgroup, netns, node, server};

/// Brings the lab up, or says that it is up.
pub async fn up(instance: &Instance, overlay: Overlay) -> Result<ExitCode> {
    require_root()?;
    let started = Instant::now();
    let restore = Restore::find()?;
    let locked = Locked::acquire(instance)?;
    match state::load(instance) {
        Ok(Some(state)) if state.phase == Phase::Up && state.overlay != overlay => {
            bail!("the lab is up with overlay {}; run `{}` first", plan::overlay_name(state.overlay), instance.command("down"))
        }
        Ok(Some(state)) => match fault(instance, &state).await? {
            None => {
                eprintln!("the lab is already up");
                return Ok(ExitCode::SUCCESS);
            }
            Some(fault) => {
                eprintln!("repairing the lab: {fault}");
                tear_down(instance).await?;
            }
        },
        // Whatever is left of an earlier one is found by name.
        Ok(None) | Err(_) => {
            tear_down(instance).await?;
        }
    }
    if let Err(e) = refuse_foreign_names(instance).await {
        locked.remove()?;
        return Err(e);
    }

    let mut term = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    let outcome = tokio::select! {
        built = build(instance, overlay, &restore, &locked) => Some(built),
        _ = term.recv() => None,
        _ = int.recv() => None,
        _ = hangup.recv() => None,
    };
    match outcome {
        Some(Ok(())) => {
            eprintln!(
                "the lab is up: {} nodes, {} pods, {} Services, overlay {} ({} ms)",
                NODES.len(),
                PODS.len(),
                SERVICES.len(),
                plan::overlay_name(overlay),
                started.elapsed().as_millis()
            );
            Ok(ExitCode::SUCCESS)
        }
        Some(Err(e)) => {
            remove_all(instance, locked).await.with_context(|| format!("after this went wrong: {e:#}"))?;
            Err(e)
        }
        None => {
            remove_all(instance, locked).await?;
            eprintln!("interrupted; removing what was created");
            Ok(ExitCode::from(130))
        }
    }
}

/// Takes the lab down, whatever state it is in.
pub async fn down(instance: &Instance) -> Result<ExitCode> {
    require_root()?;
    let was_known = instance.state_dir().exists();
    let locked = Locked::acquire(instance)?;
    let found = remove_all(instance, locked).await?;
    eprintln!("{}", if was_known || found { "the lab is down" } else { "the lab is not up; nothing to remove" });
    Ok(ExitCode::SUCCESS)
}

async fn build(instance: &Instance, overlay: Overlay, restore: &Restore, locked: &Locked) -> Result<()> {
    let mut state = locked.begin(overlay)?;
    netns_names::prepare_dir()?;
    node::load_bridge_netfilter();

    let nodes = [node::create_node(instance, NODES[0]).await?, node::create_node(instance, NODES[1]).await?];
    let mut loading = Vec::new();
    for (place, plan) in nodes.iter().zip(NODES) {
        for family in Family::ALL {
            loading.push(restore.start(plan.name, &place.netns, family)?);
        }
    }
    node::join_nodes(&nodes).await?;
    for (place, plan) in nodes.iter().zip(NODES) {
        node::equip_node(place, plan, overlay).await.with_context(|| format!("cannot set up {}", plan.name))?;
    }
    let mut starting = Vec::new();
    for pod in &PODS {
        let place = node::create_pod(instance, pod).await?;
        let home = nodes.iter().zip(NODES).find(|(_, n)| n.number == pod.node.number).map(|(p, _)| p).context("a pod without a node")?;
        node::plug_pod(home, &place, pod, instance, overlay).await.with_context(|| format!("cannot set up pod {}", pod.name))?;
        for container in pod.containers {
            make_cgroup(&state.container_cgroup(instance, pod, container))?;
            starting.push((format!("{}/{}", pod.name, container.name), server::Starting::start(instance, pod, container)?));
        }
    }
    for node in NODES {
        make_cgroup(&state.node_cgroup(instance, node))?;
    }
    for load in loading {
        load.finish()?;
    }
    for (name, server) in starting {
        let pid = server.ready().with_context(|| format!("the server of {name} did not start"))?;
        state.servers.insert(name, pid);
    }
    state.phase = Phase::Up;
    locked.save(&state)
}

fn make_cgroup(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the cgroup {}", dir.display()))
}

async fn remove_all(instance: &Instance, locked: Locked) -> Result<bool> {
    let found = tear_down(instance).await?;
    locked.remove()?;
    Ok(found)
}

/// Removes everything of the instance but its state directory: processes, cgroups, namespaces with all that is in them.
/// Says whether there was anything.
async fn tear_down(instance: &Instance) -> Result<bool> {
    let mut found = false;
    let mut accelerated = None;
    if let Some(root) = cgroup::mounted()? {
        let dir = root.join(instance.cgroup_name());
        accelerated = Released::of_cgroups_below(&instance.site(), &dir)?;
        if dir.exists() {
            if cgroup::contains_self(&root, &dir) {
                bail!("this command runs inside the lab that it would remove; run it outside of `lab exec`");
            }
            if let Some(accelerated) = &accelerated {
                accelerated.drain().await.context("cannot end the acceleration of the lab's pods")?;
            }
            cgroup::remove(&dir)?;
            found = true;
        }
    }
    for entity in plan::entities() {
        let path = instance.netns_path(entity);
        match netns_names::look_up(&path, &instance.mark()).await? {
            Named::Free | Named::Foreign => {}
            named @ (Named::Ours(_) | Named::Stale) => {
                netns_names::remove(&path)?;
                found = true;
                if let Named::Ours(netns) = named {
                    for process in netns::inhabitants(&netns) {
                        eprintln!("process {process} is still in the network namespace of {entity}, which remains until it ends");
                    }
                }
            }
        }
    }
    if let Some(accelerated) = accelerated {
        accelerated.remove().await.context("cannot remove what the acceleration of the lab's pods left")?;
        found = true;
    }
    Ok(found)
}

async fn refuse_foreign_names(instance: &Instance) -> Result<()> {
    for entity in plan::entities() {
        let path = instance.netns_path(entity);
        if matches!(netns_names::look_up(&path, &instance.mark()).await?, Named::Foreign) {
            let name = instance.netns_name(entity);
            bail!(
                "the network namespace {name} exists and does not belong to the lab: remove it (`ip netns del {name}`), or choose another instance with {}=NAME",
                plan::INSTANCE_VAR
            );
        }
    }
    Ok(())
}
