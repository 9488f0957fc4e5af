//! kill -9 at random times, of brokerd and of workerds, while a large job runs. A failure prints the seed that repeats it.

use codering_tests::{
    Backend, Setup, fixture,
    storm::{Storm, Toll, seed},
};

fn assert_nothing_lost(toll: &Toll) {
    eprintln!("{toll}");
    assert_eq!((toll.lost, toll.doubled), (0, 0), "{toll}");
    assert!(toll.brokers > 1 && toll.workers > 1, "the job was over before anyone died twice: {toll}");
}

fn ten_thousand(backend: Backend) {
    assert_nothing_lost(&Storm::simulated(backend, 10_000, 200..900).rage());
}

#[test]
fn invariant_2_ten_thousand_tasks_end_once_under_random_kills_on_the_embedded_queue() {
    ten_thousand(Backend::Embedded);
}

#[test]
fn invariant_2_ten_thousand_tasks_end_once_under_random_kills_on_rabbitmq() {
    ten_thousand(Backend::RabbitMq);
}

/// Tasks that are really run.
fn three_hundred(backend: Backend) {
    let repository = tempfile::Builder::new().prefix("codering-storm-").tempdir().unwrap();
    let git = fixture::git_repository(
        &repository.path().join("app.git"),
        &[("Dockerfile", "FROM codering/base\n")],
    );
    let mut setup = Setup::new(backend, 2);
    setup.slots = 4;
    let storm = Storm {
        setup,
        tasks: 300,
        tasks_per_job: 300,
        git: Some(git),
        command: "echo {}".into(),
        every: 10..40,
        seed: seed(),
    };
    assert_nothing_lost(&storm.rage());
}

#[test]
fn invariant_2_three_hundred_containers_end_once_under_random_kills_on_the_embedded_queue() {
    three_hundred(Backend::Embedded);
}

#[test]
fn invariant_2_three_hundred_containers_end_once_under_random_kills_on_rabbitmq() {
    three_hundred(Backend::RabbitMq);
}
