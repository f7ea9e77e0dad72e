//! Who gets nothing, and what it is told.

use std::time::Duration;

use credd_protocol::{JobToken, Uid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::whois::Caller;
use super::house::{Everybody, House, ask_on, in_a_house, own_uid, raw_on, read_answer};
use crate::control::{ToKeeper, ToServer};

#[test]
fn heads_that_no_sdk_sends_are_denied() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, token) = house.job(7).await;
        let get = format!("GET {} HTTP/1.1", House::path(7));
        let (host, token) = (house.host(), format!("Authorization: {}", token.expose()));
        let port = house.endpoint.port();
        let with = |more: &str| vec![host.clone(), token.clone(), more.to_owned()];
        for (line, headers, status, word) in [
            (get.clone(), vec![host.clone()], 403, "NoToken"),
            (get.clone(), vec![token.clone(), format!("Host: evil.example:{port}")], 403, "WrongHost"),
            (get.clone(), vec![token.clone(), "Host: evil.example".into()], 403, "WrongHost"),
            (get.clone(), vec![token.clone(), format!("Host: 127.0.0.1:{}", port ^ 1)], 403, "WrongHost"),
            (get.clone(), vec![token.clone()], 403, "WrongHost"),
            (get.clone(), with("Origin: http://evil.example"), 403, "BrowserRequest"),
            (get.clone(), with("Sec-Fetch-Site: cross-site"), 403, "BrowserRequest"),
            (get.clone(), with("X-Forwarded-For: 10.0.0.1"), 403, "BrowserRequest"),
            (get.clone(), with("Referer: x"), 403, "BrowserRequest"),
            (get.replace("GET", "POST"), with("Content-Length: 0"), 405, "MethodNotAllowed"),
            (get.replace("GET", "PUT"), with("Content-Length: 0"), 405, "MethodNotAllowed"),
            ("GET / HTTP/1.1".into(), with("a: b"), 404, "NotFound"),
            ("GET /latest/meta-data/ HTTP/1.1".into(), with("a: b"), 404, "NotFound"),
        ] {
            let answer = house.raw(&line, &headers).await;
            assert_eq!((answer.status, answer.word().as_str()), (status, word), "{line} {headers:?}");
            assert!(answer.message().len() > 20 && answer.head.contains("connection: close"), "{}", answer.head);
        }
        assert_eq!(house.counts(), (0, 0), "nothing reached credvend");
        let answer = house
            .raw(&get, &[format!("Host: localhost:{port}"), token.to_uppercase().replace("CREDD1", "credd1")])
            .await;
        assert_eq!(answer.status, 403, "tokens are exact");
        let named = [format!("HOST: localhost:{port}"), token.replace("Authorization", "AUTHORIZATION")];
        assert_eq!(house.raw(&get, &named).await.status, 200, "header names are not");
    });
}

#[test]
fn another_jobs_path_and_a_wrong_token_get_nothing() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, one) = house.job(1).await;
        let (_, two) = house.job(2).await;
        let answer = house.ask(2, &one).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "OtherJob"));
        assert!(answer.message().contains("job 2") && answer.message().contains("job 1"));
        let answer = house.ask(3, &JobToken::mint().unwrap()).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "UnknownToken"));
        let bearer = [house.host(), format!("Authorization: Bearer {}", one.expose())];
        let answer = house.raw(&format!("GET {} HTTP/1.1", House::path(1)), &bearer).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "UnknownToken"));
        assert_eq!(house.counts(), (0, 0));
        // Two jobs of one user may share a connection.
        let mut kept = house.connect().await;
        let port = house.endpoint.port();
        assert_eq!(ask_on(&mut kept, port, 1, &one).await.word(), "ASIA0001");
        assert_eq!(ask_on(&mut kept, port, 2, &two).await.word(), "ASIA0002");
        assert_eq!(ask_on(&mut kept, port, 1, &one).await.word(), "ASIA0001");
    });
}

#[test]
fn what_a_kept_connection_proved_holds_for_that_path_and_token_only() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, one) = house.job(1).await;
        let (job, two) = house.job(2).await;
        let port = house.endpoint.port();
        let mut kept = house.connect().await;
        for _ in 0..2 {
            assert_eq!(ask_on(&mut kept, port, 1, &one).await.word(), "ASIA0001");
        }
        // Each denial closes its connection.
        let answer = ask_on(&mut kept, port, 2, &one).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "OtherJob"), "the token that passed, another path");
        let mut kept = house.connect().await;
        assert_eq!(ask_on(&mut kept, port, 1, &one).await.status, 200);
        let answer = ask_on(&mut kept, port, 1, &two).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "OtherJob"), "the path that passed, another token");
        let get = format!("GET {} HTTP/1.1", House::path(1));
        let token = format!("Authorization: {}", one.expose());
        for (more, word) in [("Origin: null", "BrowserRequest"), ("Host: evil.example", "WrongHost")] {
            let mut kept = house.connect().await;
            assert_eq!(ask_on(&mut kept, port, 1, &one).await.status, 200);
            let answer = raw_on(&mut kept, &get, &[house.host(), token.clone(), more.to_owned()]).await;
            assert_eq!((answer.status, answer.word().as_str()), (403, word));
        }
        let mut kept = house.connect().await;
        assert_eq!(ask_on(&mut kept, port, 1, &one).await.status, 200);
        assert_eq!(raw_on(&mut kept, &get, &[house.host()]).await.word(), "NoToken");
        // The job ends while its connection is kept.
        let mut kept = house.connect().await;
        assert_eq!(ask_on(&mut kept, port, 2, &two).await.word(), "ASIA0002");
        house.end(&job.run).await;
        house.until("the end is delivered", |h| h.heard(&ToKeeper::EndDelivered { run: job.run })).await;
        let answer = ask_on(&mut kept, port, 2, &two).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "JobEnded"));
    });
}

#[test]
fn an_invalidated_session_is_refused_on_a_kept_connection_too() {
    in_a_house(async || {
        let mut house = House::new().await;
        house.until("the stream is open", |h| h.credvend.script.borrow().streams == 1).await;
        let (job, token) = house.job(7).await;
        let port = house.endpoint.port();
        let mut kept = house.connect().await;
        for _ in 0..2 {
            assert_eq!(ask_on(&mut kept, port, 7, &token).await.status, 200);
        }
        let session = house.session_of(&job.run).expect("the keeper was told");
        house.credvend.invalidate(session, "revoked");
        house.until("it is refused", |h| h.said.borrow().iter().any(|m| matches!(m, ToKeeper::Refused { .. }))).await;
        let answer = ask_on(&mut kept, port, 7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "Refused"));
    });
}

#[test]
fn another_users_process_gets_nothing_the_kernel_says_who_it_is() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, token) = house.job_with(7, |job| job.uid = Uid(own_uid() + 1)).await;
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "OtherUser"));
        assert!(answer.message().contains("job 7") && answer.message().contains(&format!("uid {}", own_uid())));
        assert!(answer.message().contains("--userns=keep-id --user $(id -u)"), "the way out of a rootless container");
        assert_eq!(house.counts(), (0, 0));
        // The same connection serves a job of the caller's own uid, and still not the other one.
        let (_, own) = house.job(8).await;
        let mut kept = house.connect().await;
        let port = house.endpoint.port();
        assert_eq!(ask_on(&mut kept, port, 8, &own).await.status, 200);
        assert_eq!(ask_on(&mut kept, port, 7, &token).await.status, 403);
    });
}

#[test]
fn a_caller_whom_the_kernel_does_not_name_gets_nothing_not_even_roots() {
    in_a_house(async || {
        let nobody = || Box::new(Everybody(Err("not held by any process (state TIME_WAIT)".into())));
        let mut house = House::with(|plan, _| plan.whois = nobody()).await;
        let (_, token) = house.job_with(7, |job| job.uid = Uid(0)).await;
        let answer = house.ask(7, &token).await;
        assert_eq!((answer.status, answer.word().as_str()), (403, "NoCaller"));
        assert_eq!(house.counts(), (0, 0));
    });
}

#[test]
fn a_socket_that_its_process_has_closed_is_nobodys_although_its_uid_reads_0() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (_, roots) = house.job_with(7, |job| job.uid = Uid(0)).await;
        let (_, own) = house.job(8).await;
        let text =
            format!("GET {} HTTP/1.1\r\n{}\r\nAuthorization: {}\r\n\r\n", House::path(7), house.host(), roots.expose());
        // Server and client share this thread: the connections are closed before the server accepts them.
        let half = std::net::TcpStream::connect(house.endpoint).unwrap();
        for closed_wholly in [false, true] {
            let mut stream = std::net::TcpStream::connect(house.endpoint).unwrap();
            std::io::Write::write_all(&mut stream, text.as_bytes()).unwrap();
            if closed_wholly {
                drop(stream);
            } else {
                let mut half = &half;
                std::io::Write::write_all(&mut half, text.as_bytes()).unwrap();
                half.shutdown(std::net::Shutdown::Write).unwrap();
            }
        }
        // The kernel's queue is in order: when this one is served, those have been dealt with.
        assert_eq!(house.ask(8, &own).await.status, 200);
        assert_eq!(house.counts(), (1, 1), "nothing was asked for job 7");
        half.set_nonblocking(true).unwrap();
        let mut half = tokio::net::TcpStream::from_std(half).unwrap();
        let mut all = String::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), half.read_to_string(&mut all)).await.expect("closed");
        assert!(all.contains("NoCaller") && !all.contains("AccessKeyId"), "{all}");
    });
}

#[test]
fn a_process_that_is_faster_than_the_word_of_its_start_is_waited_for() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| {
            plan.settings.newcomer_patience = Duration::from_secs(10);
        })
        .await;
        let (job, token) = super::super::jobs::fixture::job(7, own_uid());
        let mut stream = house.connect().await;
        let text =
            format!("GET {} HTTP/1.1\r\n{}\r\nAuthorization: {}\r\n\r\n", House::path(7), house.host(), token.expose());
        stream.write_all(text.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        house.tell(&ToServer::Job(Box::new(job))).await;
        assert_eq!(read_answer(&mut stream).await.status, 200);
    });
}

#[test]
fn before_the_records_are_read_nobody_is_unknown() {
    in_a_house(async || {
        let house = House::with(|plan, _| plan.scanned = false).await;
        let answer = house.ask(7, &JobToken::mint().unwrap()).await;
        assert_eq!((answer.status, answer.word().as_str()), (503, "Starting"));
    });
}

#[test]
fn while_the_keeper_hangs_nobody_is_unknown_and_its_queue_is_bounded() {
    in_a_house(async || {
        let house = House::with(|plan, _| {
            plan.looks = false;
            plan.settings.newcomer_patience = Duration::from_millis(1);
        })
        .await;
        let token = JobToken::mint().unwrap();
        for _ in 0..300 {
            let answer = house.ask(7, &token).await;
            assert_eq!((answer.status, answer.word().as_str()), (503, "RecordsUnread"));
        }
        let asked = house.said.borrow().iter().filter(|m| matches!(m, ToKeeper::Look { .. })).count();
        assert_eq!(asked, 256);
    });
}

#[test]
fn floods_of_headers_and_slow_heads_are_cut_off() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| plan.settings.limits.idle = Duration::from_millis(200)).await;
        let (_, token) = house.job(7).await;
        let get = format!("GET {} HTTP/1.1", House::path(7));
        let flood: Vec<String> = (0..200).map(|n| format!("x-{n}: y")).collect();
        let mut stream = house.connect().await;
        stream.write_all(format!("{get}\r\n{}\r\n\r\n", flood.join("\r\n")).as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        assert!(all.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&all));
        let mut stream = house.connect().await;
        let _ = stream.write_all(format!("{get}\r\nx: {}\r\n\r\n", "y".repeat(40_000)).as_bytes()).await;
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        assert!(!String::from_utf8_lossy(&all).contains("AccessKeyId"));
        // Half a head, and then nothing.
        let mut stream = house.connect().await;
        stream.write_all(get.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await;
        assert!(read.is_ok(), "closed by the server");
        // A kept connection that idles.
        let mut stream = house.connect().await;
        assert_eq!(ask_on(&mut stream, house.endpoint.port(), 7, &token).await.status, 200);
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut Vec::new())).await;
        assert!(read.is_ok(), "closed by the server");
        assert_eq!(house.ask(7, &token).await.status, 200);
    });
}

#[test]
fn a_client_that_never_reads_loses_its_place() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| {
            plan.settings.limits.idle = Duration::from_millis(200);
            plan.settings.limits.endpoint.all = 1;
        })
        .await;
        let (_, token) = house.job(7).await;
        let mut greedy = house.connect().await;
        let port = house.endpoint.port();
        assert_eq!(ask_on(&mut greedy, port, 7, &token).await.status, 200);
        // There is one place, and it comes free although the first client keeps its connection.
        assert_eq!(house.ask(7, &token).await.status, 200);
        drop(greedy);
    });
}

#[test]
fn one_users_connections_and_waiting_requests_are_bounded() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| {
            plan.settings.limits.endpoint.per_user = 4;
            plan.settings.limits.idle = Duration::from_secs(3600);
            plan.settings.limits.waiting_per_user = 2;
        })
        .await;
        house.credvend.script.borrow_mut().delay = Duration::from_millis(300);
        let (_, token) = house.job(7).await;
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..3 {
            let (endpoint, token) = (house.endpoint, token.clone());
            asking.spawn_local(async move {
                let stream = tokio::net::TcpStream::connect(endpoint).await.unwrap();
                ask_on(&mut tokio::io::BufReader::new(stream), endpoint.port(), 7, &token).await
            });
        }
        let mut statuses: Vec<u16> = asking.join_all().await.iter().map(|a| a.status).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 503]);

        let mut kept = Vec::new();
        for _ in 0..4 {
            let mut stream = house.connect().await;
            assert_eq!(ask_on(&mut stream, house.endpoint.port(), 7, &token).await.status, 200);
            kept.push(stream);
        }
        // The fifth takes the place of the one that has idled longest.
        assert_eq!(house.ask(7, &token).await.status, 200);
        assert_eq!(kept[0].read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
        let port = house.endpoint.port();
        for stream in &mut kept[1..] {
            assert_eq!(ask_on(stream, port, 7, &token).await.status, 200);
        }
    });
}

/// A new uid for each of the first connections, and then the test's own.
struct Crowd(std::cell::Cell<u32>);

impl super::super::whois::WhoIs for Crowd {
    fn caller(&self, _: std::net::SocketAddr, _: std::net::SocketAddr) -> Result<Caller, String> {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        Ok(Caller::of(if left == 0 { own_uid() } else { 100_000 + left }))
    }
}

#[test]
fn many_users_without_a_job_here_leave_room_for_those_who_have_one() {
    in_a_house(async || {
        let mut house = House::with(|plan, _| {
            plan.settings.limits.endpoint.all = 8;
            plan.settings.limits.endpoint.strangers = 4;
            plan.settings.limits.idle = Duration::from_secs(3600);
            plan.whois = Box::new(Crowd(std::cell::Cell::new(8)));
        })
        .await;
        let (_, token) = house.job(7).await;
        let mut crowd = Vec::new();
        for _ in 0..8 {
            crowd.push(house.connect().await);
        }
        assert_eq!(house.ask(7, &token).await.status, 200);
        // Four are held; the others made room for them.
        for stream in &mut crowd[..4] {
            assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
        }
        for stream in &mut crowd[4..] {
            let held = tokio::time::timeout(Duration::from_millis(20), stream.read_to_end(&mut Vec::new())).await;
            assert!(held.is_err());
        }
    });
}

#[test]
fn odd_but_legal_requests_are_checked_like_any_other() {
    in_a_house(async || {
        let mut house = House::new().await;
        let (job, token) = house.job(7).await;
        let (_, others) = house.job_with(8, |job| job.uid = Uid(own_uid() + 1)).await;
        let (host, path) = (house.host(), House::path(7));
        let auth = format!("Authorization: {}", token.expose());
        let own = format!("http://127.0.0.1:{}{path}", house.endpoint.port());
        for (line, status, word) in [
            (format!("GET {own} HTTP/1.1"), 200, "ASIA0001"),
            (format!("GET http://evil.example{path} HTTP/1.1"), 403, "WrongHost"),
            (format!("GET http://x@127.0.0.1:{}{path} HTTP/1.1", house.endpoint.port()), 403, "WrongHost"),
            (format!("GET {path} HTTP/1.0"), 200, "ASIA0001"),
            (format!("GET /x{path} HTTP/1.1"), 200, "ASIA0001"),
            (format!("GET /x/y{path} HTTP/1.1"), 404, "NotFound"),
            (
                format!("GET {}?/sessions/8/cluster/a/project/b HTTP/1.1", path.split('?').next().unwrap()),
                200,
                "ASIA0001",
            ),
        ] {
            let answer = house.raw(&line, &[host.clone(), auth.clone()]).await;
            assert_eq!((answer.status, answer.word().as_str()), (status, word), "{line}");
        }
        // Bodies, and what follows them on the same connection: each request is judged by itself.
        let mut stream = house.connect().await;
        let ask = |id: u32, token: &JobToken, more: &str| {
            let auth = format!("Authorization: {}", token.expose());
            format!("GET {} HTTP/1.1\r\n{host}\r\n{auth}\r\n{more}", House::path(id))
        };
        let hidden = ask(8, &others, "\r\n");
        let all = [
            ask(7, &token, &format!("Content-Length: {}\r\n\r\n{hidden}", hidden.len())),
            ask(7, &token, "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            ask(8, &others, "\r\n"),
        ];
        stream.write_all(all.concat().as_bytes()).await.unwrap();
        for (status, word) in [(200, "ASIA0001"), (200, "ASIA0001"), (403, "OtherUser")] {
            let answer = read_answer(&mut stream).await;
            assert_eq!((answer.status, answer.word().as_str()), (status, word));
        }
        // Two readings of where a request ends are none.
        for framing in ["Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "Bad Name: x\r\n\r\n"] {
            let mut stream = house.connect().await;
            stream.write_all(ask(7, &token, framing).as_bytes()).await.unwrap();
            let mut all = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await;
            assert!(read.is_ok() && all.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&all));
        }
        // A connection that outlives the job serves it no more.
        let mut kept = house.connect().await;
        let port = house.endpoint.port();
        assert_eq!(ask_on(&mut kept, port, 7, &token).await.status, 200);
        house.end(&job.run).await;
        house.until("delivered", |h| h.heard(&crate::control::ToKeeper::EndDelivered { run: job.run })).await;
        assert_eq!(ask_on(&mut kept, port, 7, &token).await.word(), "JobEnded");
    });
}
