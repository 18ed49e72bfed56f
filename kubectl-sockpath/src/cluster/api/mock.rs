//! An API server made of recorded answers, for tests without a cluster.

use std::collections::BTreeMap;
use std::future::{Pending, Ready, pending, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use crate::cluster::api::client::Api;

/// Status code and body.
type Answer = (u16, Value);

/// Answers requests by method and path (without the query), a star at the end stands for anything; records what was asked.
#[derive(Clone, Default)]
pub struct Mock {
    answers: Arc<Mutex<BTreeMap<String, Vec<Answer>>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Mock {
    /// Adds an answer. Several for one request are given in turn, the last one repeatedly.
    pub fn on(self, request: &str, code: u16, answer: Value) -> Self {
        self.answers.lock().unwrap().entry(request.to_owned()).or_default().push((code, answer));
        self
    }

    /// From here on a request is not answered, as a watch is in which nothing happens.
    pub fn silent(self, request: &str) -> Self {
        self.on(request, 0, Value::Null)
    }

    /// Adds a list of objects.
    pub fn list(self, path: &str, items: Value) -> Self {
        self.on(&format!("GET {path}"), 200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
    }

    /// Adds a refusal for lack of rights.
    pub fn forbid(self, request: &str) -> Self {
        let message = "pods is forbidden: User \"eve\" cannot do that";
        self.on(
            request,
            403,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": message}),
        )
    }

    /// What was asked so far, as `METHOD PATH?QUERY`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// A connection to it.
    pub fn api(&self, namespace: &str) -> Api {
        let (mock, default) = (self.clone(), namespace.to_owned());
        Api::with_client(move || Client::new(mock.clone(), default.clone()), namespace)
    }
}

impl tower::Service<Request<Body>> for Mock {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Either<Ready<Result<Self::Response, Self::Error>>, Pending<Result<Self::Response, Self::Error>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        self.asked.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
        let key = format!("{} {path}", request.method());
        let mut answers = self.answers.lock().unwrap();
        let star = || answers.keys().filter(|k| k.strip_suffix('*').is_some_and(|begin| key.starts_with(begin))).max_by_key(|k| k.len());
        let key = if answers.contains_key(&key) { key } else { star().cloned().unwrap_or(key) };
        let (code, answer) = match answers.get_mut(&key) {
            Some(list) if list.len() > 1 => list.remove(0),
            Some(list) => list[0].clone(),
            None => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": format!("{key} not found")});
                (404, status)
            }
        };
        if answer.is_null() {
            return Either::Right(pending());
        }
        // A string is sent as it is: watches answer with lines.
        let body = match answer {
            Value::String(text) => text.into_bytes(),
            other => other.to_string().into_bytes(),
        };
        Either::Left(ready(Ok(Response::builder().status(code).header("content-type", "application/json").body(Body::from(body)).unwrap())))
    }
}
