//! Upkeep: mirrors and images stay under a bound, least recently used first, never what is in use; orphaned containers
//! go; Docker's health is looked at.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bollard::{
    Docker,
    models::ImageSummary,
    query_parameters::{ListImagesOptionsBuilder, RemoveImageOptionsBuilder},
};
use codering_core::units::show_size;
use codering_kit::health::Readiness;
use tokio_util::sync::CancellationToken;

use crate::{
    image::{LEFTOVER, REPOSITORY},
    readopt,
    sandbox::{Unavailable, docker::call, host, refusal},
    worker::{Real, Work, Worker},
};

/// How often it is looked at without a cause.
const EVERY: Duration = Duration::from_secs(300);
/// After a build, at the soonest.
const SOON: Duration = Duration::from_secs(5);
/// How often Docker is asked whether it is there.
const HEALTH_EVERY: Duration = Duration::from_secs(5);
/// Looks that find it away, until that is an error.
const LONG_DOWN: u32 = 4;
/// Docker has so long to say so.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);

/// Something that may go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    Mirror(PathBuf),
    Image(String),
}

#[derive(Debug, Clone)]
struct Entry {
    item: Item,
    bytes: u64,
    used: SystemTime,
    in_use: bool,
}

/// Keeps the caches under their bound until `end`.
pub(crate) async fn run(worker: Arc<Worker>, docker: Docker, end: CancellationToken) {
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
            () = async {
                worker.tidy.notified().await;
                tokio::time::sleep(SOON).await;
            } => {}
        }
        let Work::Real(real) = &worker.work else { return };
        if let Err(e) = tidy(&worker, real, &docker).await {
            tracing::warn!("the caches were not looked at: {e}");
        }
        if let Err(e) = readopt::sweep(&worker, real.sandbox.as_ref()).await {
            tracing::warn!("orphans were not looked for: {e}");
        }
    }
}

/// Looks at Docker until `end`: while it does not answer, nothing new is taken.
pub(crate) async fn health(
    worker: Arc<Worker>,
    docker: Docker,
    readiness: Readiness,
    end: CancellationToken,
) {
    let (mut anew, mut down) = (true, 0);
    loop {
        let asked = tokio::time::timeout(HEALTH_TIMEOUT, docker.ping()).await;
        let why = match asked {
            // Another Docker may be there after one that went: what it can enforce is asked anew.
            Ok(Ok(_)) if worker.docker_down() || anew => match host::confines(&docker).await {
                Ok(()) => None,
                Err(e) => Some(format!("[{}] {e}", e.code.as_str())),
            },
            Ok(Ok(_)) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some("Docker does not answer".to_owned()),
        };
        let news = worker.set_docker_down(why.is_some());
        down = if why.is_some() { down + 1 } else { 0 };
        match &why {
            // It may be restarted just now.
            Some(why) if news => tracing::warn!("Docker cannot be used, nothing new is taken: {why}"),
            Some(why) if down == LONG_DOWN => tracing::error!("Docker still cannot be used: {why}"),
            None if news => tracing::info!("Docker can be used again"),
            _ => {}
        }
        readiness.degraded("docker", why);
        anew = tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(HEALTH_EVERY) => false,
            () = worker.check_docker.notified() => true,
        };
    }
}

async fn tidy(worker: &Worker, real: &Real, docker: &Docker) -> Result<(), Unavailable> {
    let options = ListImagesOptionsBuilder::default().all(true).build();
    let images =
        call(docker.list_images(Some(options))).await.map_err(|e| refusal::unavailable("list images", &e))?;
    let mirrors = {
        let mirrors = real.mirrors.clone();
        tokio::task::spawn_blocking(move || mirrors.sizes()).await.map_err(|e| Unavailable(e.to_string()))?
    };
    let mut entries: Vec<Entry> = mirrors
        .into_iter()
        // One in use is not removed when it comes to it.
        .map(|(path, bytes, used)| Entry { item: Item::Mirror(path), bytes, used, in_use: false })
        .collect();
    let leftovers = leftovers(real, &images);
    for (name, bytes) in own_bytes(&images, &leftovers) {
        let Some(used) = real.images.last_used(&name) else { continue };
        let in_use = real.images.is_used(&name);
        entries.push(Entry { item: Item::Image(name), bytes, used, in_use });
    }
    let total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    worker.metrics.cache_bytes.set(i64::try_from(total).unwrap_or(i64::MAX));
    // Where Docker's disk is nearly full, the caches give way.
    let missing = real.images.disk().await.map_or(0, |disk| disk.missing());
    let bound = worker.now.get().cache_max_bytes.min(if missing > 0 {
        total.saturating_sub(missing)
    } else {
        u64::MAX
    });
    for victim in victims(entries, bound) {
        let gone = match &victim.item {
            Item::Mirror(path) => {
                let (mirrors, path) = (real.mirrors.clone(), path.clone());
                tokio::task::spawn_blocking(move || mirrors.evict(&path)).await.unwrap_or(false)
            }
            Item::Image(name) => {
                // Not by force: one that a container uses stays.
                let options = RemoveImageOptionsBuilder::default().build();
                let id = name.strip_prefix(LEFTOVER);
                let gone = call(docker.remove_image(id.unwrap_or(name), Some(options), None)).await.is_ok();
                // What is left without a name and cannot go is part of another image by now.
                if gone || id.is_some() {
                    real.images.forget(name);
                }
                gone
            }
        };
        tracing::info!(item = ?victim.item, bytes = show_size(victim.bytes), gone, "evicted from the cache");
    }
    Ok(())
}

/// What has to go, least recently used first.
fn victims(mut entries: Vec<Entry>, bound: u64) -> Vec<Entry> {
    let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    entries.sort_by_key(|entry| entry.used);
    let mut victims = Vec::new();
    for entry in entries {
        if total <= bound {
            break;
        }
        if !entry.in_use {
            total = total.saturating_sub(entry.bytes);
            victims.push(entry);
        }
    }
    victims
}

/// The images that builds left without a name and that are still there, by full id.
fn leftovers(real: &Real, images: &[ImageSummary]) -> HashMap<String, String> {
    let mut found = HashMap::new();
    for id in real.images.leftovers() {
        let full = format!("sha256:{id}");
        match images.iter().find(|image| image.id.starts_with(&full) && names(image).is_empty()) {
            Some(image) => {
                found.insert(image.id.clone(), format!("{LEFTOVER}{id}"));
            }
            None => real.images.forget(&format!("{LEFTOVER}{id}")),
        }
    }
    found
}

fn names(image: &ImageSummary) -> Vec<&str> {
    image.repo_tags.iter().map(String::as_str).filter(|tag| *tag != "<none>:<none>").collect()
}

/// What each of our images adds to what it was built from. Layers that two of them share count for the first, and for
/// an image with a name before one without.
fn own_bytes(images: &[ImageSummary], leftovers: &HashMap<String, String>) -> Vec<(String, u64)> {
    let by_id: HashMap<&str, &ImageSummary> = images.iter().map(|image| (image.id.as_str(), image)).collect();
    let named = images.iter().filter_map(|image| {
        let name = names(image).into_iter().find(|name| name.starts_with(REPOSITORY))?;
        Some((name.to_owned(), image))
    });
    let nameless = images.iter().filter_map(|image| Some((leftovers.get(&image.id)?.clone(), image)));
    let foreign = |image: &ImageSummary| names(image).iter().any(|name| !name.starts_with(REPOSITORY));
    let mut counted = HashSet::new();
    let mut found = Vec::new();
    for (name, image) in named.chain(nameless) {
        let (mut bytes, mut at) = (0, image);
        // Upwards through the builder's steps, to the base image.
        while !foreign(at) && counted.insert(at.id.as_str()) {
            let size = u64::try_from(at.size).unwrap_or(0);
            match by_id.get(at.parent_id.as_str()) {
                Some(parent) => {
                    bytes += size.saturating_sub(u64::try_from(parent.size).unwrap_or(0));
                    at = parent;
                }
                None => {
                    bytes += size;
                    break;
                }
            }
        }
        found.push((name, bytes));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, bytes: u64, used: u64, in_use: bool) -> Entry {
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(used);
        Entry { item: Item::Image(name.into()), bytes, used, in_use }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_what_is_in_use_stays() {
        let entries =
            vec![entry("new", 40, 3, false), entry("busy", 40, 1, true), entry("old", 40, 2, false)];
        let names = |bound| -> Vec<Item> {
            victims(entries.clone(), bound).into_iter().map(|victim| victim.item).collect()
        };
        assert_eq!(names(120), []);
        assert_eq!(names(100), [Item::Image("old".into())]);
        assert_eq!(names(10), [Item::Image("old".into()), Item::Image("new".into())]);
    }

    fn image(id: &str, parent: &str, tag: &str, size: i64) -> ImageSummary {
        ImageSummary {
            id: id.into(),
            parent_id: parent.into(),
            repo_tags: vec![tag.into()],
            size,
            ..ImageSummary::default()
        }
    }

    #[test]
    fn an_image_counts_for_what_it_adds_to_its_base() {
        let images = [
            image("base", "", "codering/base:bookworm", 1000),
            image("step", "base", "<none>:<none>", 1010),
            image("a", "step", "codering/ctx:a", 1015),
            image("b", "step", "codering/ctx:b", 1030),
            image("failed", "step", "<none>:<none>", 1017),
        ];
        let leftovers = HashMap::from([("failed".to_owned(), "step-failed".to_owned())]);
        let expected = [("codering/ctx:a", 15), ("codering/ctx:b", 20), ("step-failed", 7)];
        assert_eq!(own_bytes(&images, &leftovers), expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    }
}
