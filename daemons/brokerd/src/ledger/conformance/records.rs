//! Projects, queues, tokens, workers.

use codering_core::quota::Quota;

use super::*;

pub(super) async fn suite(ledger: &dyn Ledger) {
    projects_and_queues(ledger).await;
    tokens(ledger).await;
    workers(ledger).await;
}

async fn projects_and_queues(ledger: &dyn Ledger) {
    assert_eq!(ledger.projects().await.unwrap(), []);
    let quota = Quota { queued_tasks: 5, running_slots: 6, result_bytes: 7 };
    let mut one = Project { name: project("p-1"), quota, created_at: NOW };
    let other = Project { name: project("p"), quota: Quota::default(), created_at: NOW + 1 };
    ledger.put_project(one.clone()).await.unwrap();
    ledger.put_project(other.clone()).await.unwrap();
    one.quota.queued_tasks = 50;
    ledger.put_project(one.clone()).await.unwrap();
    assert_eq!(ledger.projects().await.unwrap(), [other.clone(), one.clone()]);
    assert_eq!(ledger.usage(&one.name).await.unwrap(), Usage::default());

    let queue = |name: &str| -> QueueName { name.parse().unwrap() };
    for name in ["p-1.todo", "p.todo", "p_1.todo", "p.done", "bare"] {
        assert!(ledger.put_queue(&queue(name)).await.unwrap());
    }
    assert!(!ledger.put_queue(&queue("bare")).await.unwrap());
    ledger.delete_queue(&queue("p.done")).await.unwrap();
    ledger.delete_queue(&queue("p.done")).await.unwrap();
    let all = ["bare", "p-1.todo", "p.todo", "p_1.todo"].map(queue);
    assert_eq!(ledger.queues().await.unwrap(), all);

    ledger.delete_project(&one.name).await.unwrap();
    assert_eq!(ledger.projects().await.unwrap(), std::slice::from_ref(&other));
    assert_eq!(ledger.queues().await.unwrap(), ["bare", "p.todo", "p_1.todo"].map(queue));
    ledger.delete_project(&other.name).await.unwrap();
    assert_eq!(ledger.queues().await.unwrap(), ["bare", "p_1.todo"].map(queue));
    ledger.delete_project(&project("default")).await.unwrap();
    assert_eq!(ledger.queues().await.unwrap(), [queue("p_1.todo")]);
}

async fn tokens(ledger: &dyn Ledger) {
    let token = |id: &str, created_at, role| Token {
        id: id.into(),
        name: format!("token {id}"),
        role,
        projects: Vec::new(),
        hash: [7; 32],
        created_at,
        expires_at: 0,
        revoked_at: 0,
        last_used_at: 0,
    };
    let roles = [Role::Admin, Role::Submitter, Role::Viewer, Role::Worker];
    let mut tokens: Vec<Token> =
        (0..).zip(roles).map(|(n, role)| token(&format!("t{n}"), NOW - n, role)).collect();
    tokens[1].projects = vec![project("a"), project("b")];
    (tokens[2].expires_at, tokens[2].last_used_at) = (NOW + 1, NOW + 2);
    for token in &tokens {
        ledger.put_token(token.clone()).await.unwrap();
    }
    assert_eq!(ledger.tokens().await.unwrap(), tokens);
    assert_eq!(ledger.token("t1").await.unwrap(), Some(tokens[1].clone()));
    assert_eq!(ledger.token("none").await.unwrap(), None);

    // Of many that spend it at once, one has.
    let spent = futures::future::join_all((0..20).map(|_| ledger.spend_token("t3", NOW + 5))).await;
    assert_eq!(spent.into_iter().filter(|spent| *spent == Ok(true)).count(), 1);
    assert_eq!(ledger.token("t3").await.unwrap().map(|token| token.revoked_at), Some(NOW + 5));
    assert!(!ledger.spend_token("none", NOW).await.unwrap());
    tokens[0].name = "renamed".into();
    ledger.put_token(tokens[0].clone()).await.unwrap();
    assert_eq!(ledger.token("t0").await.unwrap(), Some(tokens[0].clone()));
    ledger.delete_tokens(vec!["t1".into(), "none".into(), "t3".into()]).await.unwrap();
    assert_eq!(ledger.tokens().await.unwrap(), [tokens[0].clone(), tokens[2].clone()]);
}

async fn workers(ledger: &dyn Ledger) {
    let worker = |name: &str| Worker {
        name: name.parse().unwrap(),
        certificate_serial: "0a".into(),
        previous_serial: "09".into(),
        certificate_expires_at: NOW + 9,
        paused: false,
        revoked: true,
        enrolled_at: NOW,
        last_seen_at: NOW + 1,
    };
    for name in ["w2", "w1"] {
        ledger.put_worker(worker(name)).await.unwrap();
    }
    let changed = Worker { paused: true, revoked: false, ..worker("w2") };
    ledger.put_worker(changed.clone()).await.unwrap();
    assert_eq!(ledger.workers().await.unwrap(), [worker("w1"), changed]);
}
