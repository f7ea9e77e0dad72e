//! The ticket by which credvend knows this node's handshakes: taken, shown, and kept for the next server process.

use credd_protocol::handshake_ticket::HandshakeTicket;

use super::house::{House, in_a_house};
use crate::control::{ToKeeper, ToServer};

const TICKET: &str = "credd-ticket-0a0b";

fn ticket() -> HandshakeTicket {
    TICKET.parse().unwrap()
}

fn shown() -> Vec<String> {
    vec![TICKET.to_owned(), "http/1.1".to_owned()]
}

impl House {
    async fn given(ticket: Option<&str>) -> House {
        House::with(|_, credvend| credvend.script.borrow_mut().ticket = ticket.map(str::to_owned)).await
    }

    /// Breaks all connections; what the handshakes of those that take their place offer.
    async fn new_handshakes(&mut self) -> Vec<Vec<String>> {
        self.credvend.stop().await;
        let (streams, before) = (self.credvend.script.borrow().streams, self.credvend.script.borrow().offered.len());
        self.credvend.start().await;
        self.until("another stream", |h| h.credvend.script.borrow().streams > streams).await;
        self.credvend.script.borrow().offered[before..].to_vec()
    }
}

#[test]
fn the_ticket_is_shown_in_every_later_handshake_and_kept_by_the_keeper() {
    in_a_house(async || {
        let mut house = House::given(Some(TICKET)).await;
        house.until("the keeper has it", |h| h.heard(&ToKeeper::Ticket { ticket: ticket() })).await;
        assert!(house.credvend.script.borrow().offered[0].is_empty(), "nobody has one at first");
        // A job's first request needs a connection of its own.
        let (_, token) = house.job(7).await;
        assert_eq!(house.ask(7, &token).await.status, 200);
        assert_eq!(house.credvend.script.borrow().offered.last(), Some(&shown()));
        let handshakes = house.new_handshakes().await;
        assert!(!handshakes.is_empty() && handshakes.iter().all(|offered| *offered == shown()), "{handshakes:?}");
        // A reload asks credvend anew, which may be the same one.
        let before = house.credvend.script.borrow().offered.len();
        let config = house.configuration("request-timeout = \"9s\"\n");
        assert_eq!(house.configure(&config).await, None);
        house.until("another handshake", |h| h.credvend.script.borrow().offered.len() > before).await;
        assert_eq!(house.credvend.script.borrow().offered[before], shown());
        let told = house.said.borrow().iter().filter(|said| matches!(said, ToKeeper::Ticket { .. })).count();
        assert_eq!(told, 1, "the same one is no news");
    });
}

#[test]
fn an_earlier_server_process_leaves_its_ticket_and_nonsense_is_none() {
    in_a_house(async || {
        let mut house = House::given(Some("h2")).await;
        let handshakes = house.new_handshakes().await;
        assert!(handshakes.iter().all(Vec::is_empty), "{handshakes:?}");
        house.tell(&ToServer::Ticket { ticket: ticket() }).await;
        house.tell(&ToServer::Ping { id: 1 }).await;
        house.until("it has heard that", |h| h.heard(&ToKeeper::Here { id: 1 })).await;
        let handshakes = house.new_handshakes().await;
        assert!(!handshakes.is_empty() && handshakes.iter().all(|offered| *offered == shown()), "{handshakes:?}");
        assert!(house.said.borrow().iter().all(|said| !matches!(said, ToKeeper::Ticket { .. })));
    });
}

#[test]
fn where_a_handshake_with_the_ticket_fails_the_next_one_is_without() {
    in_a_house(async || {
        let mut house = House::given(Some(TICKET)).await;
        house.until("the keeper has it", |h| h.heard(&ToKeeper::Ticket { ticket: ticket() })).await;
        house.credvend.script.borrow_mut().dislikes_tickets = true;
        let handshakes = house.new_handshakes().await;
        assert_eq!((&handshakes[0], handshakes[1].len()), (&shown(), 0), "{handshakes:?}");
    });
}
