use codering_core::units::{read_duration, read_size};
use serde::Deserialize;

use super::*;

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Sample {
    name: Option<String>,
    slots: Option<u32>,
    labels: BTreeMap<String, String>,
    names: Vec<String>,
    grpc: Grpc,
    cache: Cache,
    mode: Mode,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Grpc {
    listen: Option<std::net::SocketAddr>,
    tls: bool,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
struct Cache {
    #[serde(deserialize_with = "read_size")]
    max_bytes: Option<u64>,
    #[serde(deserialize_with = "read_duration")]
    keep_for: Option<u64>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Fast,
    Safe,
}

struct Files(tempfile::TempDir);

impl Files {
    fn new(main: &str) -> Self {
        let files = Self(tempfile::tempdir().expect("a directory"));
        files.write("sample.toml", main)
    }

    fn write(self, name: &str, text: &str) -> Self {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("inside")).expect("created");
        std::fs::write(path, text).expect("written");
        self
    }

    fn load(&self, environment: &[(&str, &str)]) -> Result<Sample, Error> {
        self.checked(environment, Ok)
    }

    fn checked(
        &self,
        environment: &[(&str, &str)],
        check: impl FnOnce(Sample) -> Result<Sample, Error>,
    ) -> Result<Sample, Error> {
        let environment = environment.iter().map(|(n, v)| (OsString::from(n), OsString::from(v)));
        load_from(&self.0.path().join("sample.toml"), true, environment, check).map(|(checked, _)| checked)
    }

    /// The error's text with the directory cut off.
    fn error(&self, environment: &[(&str, &str)]) -> String {
        let error = self.load(environment).expect_err("refused");
        assert_eq!(error.code, Code::ConfigInvalid);
        error.to_string().replace(&format!("{}/", self.0.path().display()), "")
    }
}

#[test]
fn the_keys_of_a_type_are_found_without_a_list() {
    let found: Vec<_> = keys::<Sample>().into_iter().map(|k| (k.path, k.kind)).collect();
    let expected = [
        ("name", Kind::Text),
        ("slots", Kind::Integer),
        ("labels", Kind::Map),
        ("names", Kind::List),
        ("grpc.listen", Kind::Text),
        ("grpc.tls", Kind::Bool),
        ("cache.max_bytes", Kind::Text),
        ("cache.keep_for", Kind::Text),
        ("mode", Kind::Text),
    ];
    assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn drop_ins_go_over_the_file_and_variables_over_both() {
    let files = Files::new("name = 'a'\nslots = 1\n[grpc]\ntls = true\nlisten = '127.0.0.1:1'\n")
        .write("sample.d/20-b.toml", "slots = 3\n")
        .write("sample.d/10-a.toml", "slots = 2\nname = 'b'\n")
        .write("sample.d/30-c.toml.bak", "slots = 99\n");
    let variables = [("CODERING_GRPC_LISTEN", "[::1]:2"), ("CODERING_LABELS", "a=1, b=2"), ("PATH", "/bin")];
    let sample = files.load(&variables).expect("valid");
    assert_eq!((sample.name.as_deref(), sample.slots), (Some("b"), Some(3)));
    assert_eq!(sample.grpc, Grpc { listen: "[::1]:2".parse().ok(), tls: true });
    assert_eq!(sample.labels, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]));
}

#[test]
fn every_kind_of_value_can_come_from_a_variable() {
    let variables = [
        ("CODERING_SLOTS", "4"),
        ("CODERING_NAMES", "x,y"),
        ("CODERING_GRPC_TLS", "true"),
        ("CODERING_CACHE_MAX_BYTES", "2G"),
        ("CODERING_CACHE_KEEP_FOR", "90"),
        ("CODERING_MODE", "safe"),
    ];
    let sample = Files::new("").load(&variables).expect("valid");
    assert_eq!((sample.slots, sample.names), (Some(4), vec!["x".to_owned(), "y".into()]));
    assert_eq!(sample.cache, Cache { max_bytes: Some(2 << 30), keep_for: Some(90_000) });
    assert_eq!((sample.grpc.tls, sample.mode), (true, Mode::Safe));
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
    assert_eq!(
        Files::new("name = 'a'\n\n[grpc]\nlisen = 'x'\n").error(&[]),
        "sample.toml:4: unknown key `lisen` in [grpc] (did you mean `listen`?)"
    );
    assert_eq!(
        Files::new("lisen = 'x'").error(&[]),
        "sample.toml:1: unknown key `lisen` (did you mean `grpc.listen`?)"
    );
    assert_eq!(Files::new("zzzzzz = 1").error(&[]), "sample.toml:1: unknown key `zzzzzz`");
    assert_eq!(
        Files::new("").write("sample.d/a.toml", "\n[grcp]\nlisten = 'x'").error(&[]),
        "sample.d/a.toml:2: unknown key `grcp` (did you mean `grpc`?)"
    );
}

#[test]
fn a_wrong_value_is_refused_with_its_line_and_key() {
    let error = Files::new("\nslots = -1").error(&[]);
    assert!(error.starts_with("sample.toml:2: `slots`: invalid value: integer `-1`"), "{error}");
    let error = Files::new("[cache]\n\nmax_bytes = -5").error(&[]);
    assert!(error.starts_with("sample.toml:3: `cache.max_bytes`: `-5`: expected a size"), "{error}");
    let error = Files::new("[cache]\nkeep_for = 'soon'").error(&[]);
    assert!(error.starts_with("sample.toml:2: `cache.keep_for`: `soon`: expected a duration"), "{error}");
    let error = Files::new("mode = 'slow'").error(&[]);
    assert!(error.contains("sample.toml:1: `mode`: unknown variant `slow`"), "{error}");
    let error = Files::new("grpc = 5").error(&[]);
    assert!(error.starts_with("sample.toml:1: `grpc` is a table (write `[grpc]`"), "{error}");
    let error = Files::new("name = 'a'\nname = 'b'").error(&[]);
    assert!(error.starts_with("sample.toml:2: duplicate key"), "{error}");
    let error = Files::new("a = \n").error(&[]);
    assert!(error.starts_with("sample.toml:1: "), "{error}");
}

#[test]
fn a_wrong_variable_is_refused_by_its_name() {
    let files = Files::new("");
    assert_eq!(
        files.error(&[("CODERING_SLOT", "1")]),
        "CODERING_SLOT: this variable sets no key (did you mean `CODERING_SLOTS`?)"
    );
    assert_eq!(files.error(&[("CODERING_SLOTS", "many")]), "CODERING_SLOTS: `many`: expected a whole number");
    assert!(files.error(&[("CODERING_SLOTS", "-1")]).starts_with("CODERING_SLOTS: invalid value"));
    assert!(
        files.error(&[("CODERING_GRPC_LISTEN", "here")]).starts_with("CODERING_GRPC_LISTEN: invalid socket")
    );
    for other in ["CODERING_ENDPOINTS", "CODERING_TEST_X", "CODERINGX"] {
        files.load(&[(other, "x")]).expect(other);
    }
}

#[test]
fn what_the_check_refuses_is_placed_where_it_was_written() {
    let refuse = |_| Err(Error::new(Code::InvalidInput, "no slots").at("slots"));
    let files = Files::new("name = 'a'\nslots = 0");
    let error = files.checked(&[], refuse).expect_err("refused");
    assert!(error.place.ends_with("sample.toml:2"), "{error}");
    assert_eq!(error.code, Code::ConfigInvalid);
    let error = files.checked(&[("CODERING_SLOTS", "0")], refuse).expect_err("refused");
    assert_eq!(error.place, "CODERING_SLOTS");
}

#[test]
fn a_named_file_must_be_there_and_a_default_one_need_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("sample.toml");
    let error = load_from::<Sample, _>(&file, true, [], Ok).expect_err("refused");
    assert!(error.to_string().contains("cannot be read"), "{error}");
    assert_eq!(load_from::<Sample, _>(&file, false, [], Ok).expect("defaults").0, Sample::default());
}

#[test]
fn a_secret_is_read_without_its_newline_and_never_shown() {
    let files = Files::new("hunter2\n").write("empty", "\n");
    let secret = secret_file("queue.url_file", &files.0.path().join("sample.toml")).expect("read");
    assert_eq!((secret.expose(), format!("{secret:?}").as_str()), ("hunter2", "[secret]"));
    let error = secret_file("queue.url_file", &files.0.path().join("empty")).expect_err("refused");
    assert!(error.to_string().contains("is empty") && error.place == "queue.url_file", "{error}");
}

#[test]
fn the_keys_that_were_written_anew_are_told_wherever_they_were_written() {
    let load = |files: &Files, environment: &[(&str, &str)]| {
        let environment = environment.iter().map(|(n, v)| (OsString::from(n), OsString::from(v)));
        load_from::<Sample, _>(&files.0.path().join("sample.toml"), true, environment, Ok).expect("valid").1
    };
    let files = Files::new("name = 'a'\nslots = 1\n[grpc]\ntls = true\n[labels]\na = '1'\n");
    let before = load(&files, &[]);
    assert!(load(&files, &[]).changed_since(&before).is_empty());
    let files = files.write("sample.d/a.toml", "slots = 2\n[grpc]\ntls = false\n[labels]\nb = '2'\n");
    let after = load(&files, &[("CODERING_MODE", "safe")]);
    assert_eq!(after.changed_since(&before), ["slots", "labels", "grpc.tls", "mode"]);
}
