use codering_kit::config::{Kind, keys};

use super::*;

/// One row a key in docs/reload.md, with what the code does.
#[test]
fn the_docs_say_of_every_key_whether_a_reload_changes_it() {
    let docs = include_str!("../../../../docs/reload.md");
    codering_kit::reload::assert_documented(
        docs,
        "brokerd",
        &codering_kit::config::keys::<File>(),
        AT_RESTART,
    );
}

fn check(text: &str) -> Result<Config, Error> {
    Config::check(toml::from_str(text).expect("parses"))
}

fn refused(text: &str) -> String {
    check(text).expect_err(text).to_string()
}

#[test]
fn an_empty_configuration_is_a_sane_one() {
    let config = check("").expect("valid");
    assert_eq!(config.data_dir, Path::new("/var/lib/codering/brokerd"));
    assert_eq!((config.grpc.port(), config.rest.to_string().as_str()), (7443, "127.0.0.1:7480"));
    assert!(!config.rest_tls && config.rest_certificate.is_none());
    assert_eq!((config.settings.lease, config.drain), (Duration::from_secs(30), Duration::from_secs(20)));
}

#[test]
fn rest_has_tls_wherever_the_network_can_hear_it() {
    assert!(check("rest.listen = '0.0.0.0:7480'").expect("valid").rest_tls);
    assert!(check("rest.tls = true").expect("valid").rest_tls);
    let error = refused("rest = { listen = '0.0.0.0:7480', tls = false }");
    assert!(error.starts_with("rest.tls: ") && error.contains("127.0.0.1"), "{error}");
}

#[test]
fn what_cannot_be_is_refused_by_its_key() {
    for (text, key) in [
        ("leases.duration = 0", "leases.duration"),
        ("leases.duration = '2h'", "leases.duration"),
        ("limits.memory = '1k'", "limits.memory"),
        ("limits.max_cpus = 0", "limits.max_cpus"),
        ("limits.max_tasks_per_job = 0", "limits.max_tasks_per_job"),
        ("limits.max_unfinished_jobs = 0", "limits.max_unfinished_jobs"),
        ("limits.max_timeout = '1m'", "limits.max_timeout"),
        ("shutdown.deadline = '1d'", "shutdown.deadline"),
        ("tls.cert_file = '/x'", "tls.cert_file"),
        ("tls.key_file = '/x'", "tls.key_file"),
        ("data_dir = ''", "data_dir"),
        ("public_names = ['https://x']", "public_names"),
        ("retention.keep_for = 1", "retention.keep_for"),
        ("queue.backend = 'rabbitmq'", "queue.backend"),
        ("queue = { url = 'amqp://h', url_file = '/x' }", "queue.url"),
        ("queue = { max_message_bytes = '12M' }", "`queue.max_message_bytes`: must be at least 13M"),
    ] {
        let error = refused(text);
        assert!(error.starts_with(&format!("{key}: `{key}`: ")) || error.contains(key), "{text}: {error}");
    }
}

#[test]
fn limits_that_are_written_go_over_the_defaults() {
    let text = "limits = { timeout = '1m', max_memory = '4G', allow_network = false }";
    let settings = check(text).expect("valid").settings;
    assert_eq!((settings.default_limits.timeout_ms, settings.default_limits.max_attempts), (60_000, 3));
    assert_eq!((settings.max_limits.memory_bytes, settings.max_limits.network), (4 << 30, false));
}

/// The sample with every setting that it shows switched on: `#key = value` is a setting, `# text` is not.
fn sample() -> String {
    let text = include_str!("../../../../packaging/config/brokerd.toml");
    let on = |line: &str| match line.strip_prefix('#') {
        Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase()) => setting.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(on).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_parses_and_names_every_key_and_no_other() {
    let table: toml::Table = toml::from_str(&sample()).expect("TOML");
    let mut named = Vec::new();
    paths(&table, "", &mut named);
    let mut known: Vec<_> = keys::<File>().into_iter().map(|key| key.path).collect();
    named.sort();
    known.sort();
    assert_eq!(named, known);
    assert!(keys::<File>().iter().all(|key| key.kind != Kind::Map));
    toml::from_str::<File>(&sample()).expect("every value has its type");
}

fn paths(table: &toml::Table, above: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        match value {
            toml::Value::Table(inner) => paths(inner, &path, found),
            _ => found.push(path),
        }
    }
}

#[test]
fn the_sample_shows_the_defaults() {
    let mut file: File = toml::from_str(&sample()).expect("parses");
    // What has no default is shown by an example.
    file.tls = file::Tls::default();
    let q = &mut file.queue;
    (q.url, q.url_file, q.ca_file, q.data_dir) = (None, None, None, None);
    let (shown, default) = (Config::check(file).expect("valid"), check("").expect("valid"));
    assert_eq!(format!("{shown:?}"), format!("{default:?}"));
}
