//! `git http-backend` behind TLS, with a password.

use std::{path::Path, process::Stdio, time::Duration};

use codering_kit::{listen, live::Live, shutdown::Shutdown, tls};

/// Serves what is below `root` as `localhost` and `git.test`; `/private/…` needs a password.
pub async fn https(root: &Path, certificates: &Path) -> (String, Shutdown) {
    use axum::{body::Body, extract::Request, http::StatusCode, response::Response};
    tls::install_provider();
    let ca = tls::Ca::at(certificates).unwrap();
    let issued = ca.issue_server(&["localhost".to_owned(), "git.test".to_owned()]).unwrap();
    let server = tls::server_config(issued.chain_pem.as_bytes(), issued.key_pem.as_bytes(), None).unwrap();
    let root = root.to_owned();
    let backend = move |request: Request| {
        let root = root.clone();
        async move {
            let (request, body) = request.into_parts();
            let header =
                |name: &str| request.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
            // me:secret
            if request.uri.path().starts_with("/private") && header("authorization") != "Basic bWU6c2VjcmV0" {
                let denied =
                    Response::builder().status(401).header("www-authenticate", "Basic realm=\"git\"");
                return denied.body(Body::empty()).unwrap();
            }
            if request.uri.path().starts_with("/moved") {
                let away = Response::builder()
                    .status(302)
                    .header("location", "https://127.0.0.1:1/elsewhere/info/refs?service=git-upload-pack");
                return away.body(Body::empty()).unwrap();
            }
            let mut command = tokio::process::Command::new("git");
            command
                .arg("http-backend")
                .env("GIT_PROJECT_ROOT", &root)
                .env("GIT_HTTP_EXPORT_ALL", "1")
                .env("REQUEST_METHOD", request.method.as_str())
                .env("PATH_INFO", request.uri.path().trim_start_matches("/private"))
                .env("QUERY_STRING", request.uri.query().unwrap_or(""))
                .env("CONTENT_TYPE", header("content-type"))
                .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
                .env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", "safe.directory")
                .env("GIT_CONFIG_VALUE_0", "*")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let body = axum::body::to_bytes(body, 10 << 20).await.unwrap();
            command.env("CONTENT_LENGTH", body.len().to_string());
            let mut child = command.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut stdin, &body).await });
            let out = child.wait_with_output().await.unwrap().stdout;
            let end = out.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
            let mut response = Response::builder();
            for line in String::from_utf8_lossy(&out[..end]).lines() {
                let (name, value) = line.split_once(": ").unwrap();
                match name {
                    "Status" => response = response.status(value[..3].parse::<StatusCode>().unwrap()),
                    _ => response = response.header(name, value),
                }
            }
            response.body(Body::from(out[end + 4..].to_vec())).unwrap()
        }
    };
    let router = axum::Router::new().fallback(backend);
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let shutdown = Shutdown::new(Duration::ZERO);
    tokio::spawn(listen::serve(
        listener,
        Some(Live::new(server)),
        router,
        listen::Bounds::default(),
        shutdown.clone(),
    ));
    (format!("https://localhost:{port}"), shutdown)
}
