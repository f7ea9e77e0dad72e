//! Certificates and revocation lists that end: told before and after, by `status`, `check-config` and a metric.

use std::io::{Read, Write};
use std::net::TcpStream;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use time::{Duration, OffsetDateTime};

use super::site::Site;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(ends: OffsetDateTime) -> Authority {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.not_after = ends;
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A list that is made for 30 days and ends then.
fn list(ca: &Authority, ends: OffsetDateTime) -> String {
    let list = rcgen::CertificateRevocationListParams {
        this_update: ends - Duration::days(30),
        next_update: ends,
        crl_number: 1u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(ca).unwrap().pem().unwrap()
}

/// The value of a metric without labels.
fn metric(port: u16, name: &str) -> i64 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).expect(name)
}

#[test]
fn a_revocation_list_is_warned_of_before_it_ends_and_after() {
    let mut site = Site::new();
    let now = OffsetDateTime::now_utc();
    let ca = authority(now + Duration::days(100));
    let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    site.write("ca.pem", &ca.pem());
    site.write("crl.pem", &list(&ca, now + Duration::days(10)));
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    let tls = format!("[tls]\nclient-ca = {:?}\nclient-crl = {:?}\n", site.path("ca.pem"), site.path("crl.pem"));
    site.write("credvend.toml", &format!("{text}{tls}[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n"));
    site.serve();
    let said = |site: &Site| [site.done(&["status"]), site.done(&["check-config"])];
    let path = site.path("crl.pem").display().to_string();
    let renewal = || metric(metrics, "credvend_client_crl_renewal_timestamp_seconds") - now.unix_timestamp();
    assert!(said(&site).iter().all(|said| !said.contains(&path)), "{:?}", said(&site));
    assert_eq!(renewal(), 3 * 24 * 3600, "seven days before its end");

    site.write("crl.pem", &list(&ca, now + Duration::days(6)));
    site.done(&["reload"]);
    let soon = format!("a list of client-crl in {path} ends at ");
    assert!(said(&site).iter().all(|said| said.contains(&soon)), "{:?}", said(&site));
    assert_eq!(renewal(), -24 * 3600);

    site.write("crl.pem", &list(&ca, now - Duration::hours(1)));
    site.done(&["reload"]);
    let over = format!("a list of client-crl in {path} has ended at ");
    assert!(said(&site).iter().all(|said| said.contains(&over)), "{:?}", said(&site));
    assert_eq!(metric(metrics, "credvend_client_crl_expiry_timestamp_seconds"), now.unix_timestamp() - 3600);

    assert!(site.stop().success());
    site.serve();
    site.until("the log to have it", |site| site.log().contains(&over));

    site.write("crl.pem", &list(&ca, now + Duration::days(30)));
    site.done(&["reload"]);
    assert!(said(&site).iter().all(|said| !said.contains(&path)), "{:?}", said(&site));
}

#[test]
fn an_authority_of_clients_is_warned_of_before_it_ends() {
    let mut site = Site::new();
    let ca = authority(OffsetDateTime::now_utc() + Duration::days(5));
    site.write("ca.pem", &ca.pem());
    let text = std::fs::read_to_string(site.path("credvend.toml")).unwrap();
    site.write("credvend.toml", &format!("{text}[tls]\nclient-ca = {:?}\n", site.path("ca.pem")));
    site.serve();
    for said in [site.done(&["status"]), site.done(&["check-config"])] {
        assert!(said.contains("an authority of client-ca in ") && said.contains(" ends at "), "{said}");
    }
}
