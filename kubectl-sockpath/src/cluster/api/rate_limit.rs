//! A limit of requests to the API server, on our side: as kubectl has it for what it asks most often.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use tower::{Layer, Service};

/// Requests per second on average, and how many may come at once before that: kubectl's values for
/// discovery (client-go's own, 5 and 10, are meant for controllers).
pub const KUBECTL: RateLimit = RateLimit { per_second: 50, burst: 300 };

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Times per second, on average.
    pub per_second: u32,
    /// Times without a pause, after none for long.
    pub burst: u32,
}

/// How much of a rate limit is used up: the moment at which all of the burst is available again.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    limit: RateLimit,
    full_at: Instant,
}

impl Bucket {
    /// Nothing is used up.
    #[must_use]
    pub fn full(limit: RateLimit) -> Self {
        Self { limit, full_at: Instant::now() }
    }

    /// Takes one; gives the moment from which on it may happen.
    pub fn take(&mut self, now: Instant) -> Instant {
        let each = Duration::from_secs(1) / self.limit.per_second;
        self.full_at = self.full_at.max(now) + each;
        let burst = each * self.limit.burst;
        self.full_at.checked_sub(burst).map_or(now, |at| at.max(now))
    }
}

/// Puts the limit before a client's requests.
#[derive(Debug, Clone, Copy)]
pub struct RateLimitLayer(pub RateLimit);

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimitService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimitService { inner, bucket: Bucket::full(self.0), waiting: None }
    }
}

/// A client whose requests are limited. A client's requests pass one service one after the other, so each waits for those before it.
#[derive(Debug)]
pub struct RateLimitService<S> {
    inner: S,
    bucket: Bucket,
    /// The next request has its place.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<R, S: Service<R>> Service<R> for RateLimitService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let bucket = &mut self.bucket;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep_until(bucket.take(Instant::now()))));
        std::task::ready!(waiting.as_mut().poll(cx));
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.waiting = None;
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_limit_holds() {
        let mut bucket = Bucket::full(RateLimit { per_second: 50, burst: 300 });
        let now = Instant::now();
        let waits: Vec<Duration> = (0..400).map(|_| bucket.take(now) - now).collect();
        assert!(waits[..300].iter().all(Duration::is_zero), "{:?}", &waits[..3]);
        assert_eq!((waits[300], waits[399]), (Duration::from_millis(20), Duration::from_secs(2)));
        assert_eq!(bucket.take(now + Duration::from_secs(3)), now + Duration::from_secs(3), "what was waited for is available again");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_a_client_wait_for_their_turn() {
        #[derive(Clone)]
        struct Answer;
        impl Service<u32> for Answer {
            type Response = u32;
            type Error = std::convert::Infallible;
            type Future = std::future::Ready<Result<u32, Self::Error>>;
            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
                Poll::Ready(Ok(()))
            }
            fn call(&mut self, n: u32) -> Self::Future {
                std::future::ready(Ok(n))
            }
        }
        let mut service = RateLimitLayer(RateLimit { per_second: 10, burst: 2 }).layer(Answer);
        let began = Instant::now();
        for n in 0..7 {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
            assert_eq!(service.call(n).await, Ok(n));
        }
        assert_eq!(began.elapsed().as_millis() / 10, 50, "two at once, the others 100 ms apart");
    }
}
