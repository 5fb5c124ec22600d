//! Who may move guests here, over what, and what the others hear.

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::authority::Authority;
use common::{POLICY, moved};
use evenkeel_migrate::{
    Address, Credentials, Listener, NotSent, Phase, Pipe, Policy, Received, Slow, Stream,
};

const PATIENCE: Duration = Duration::from_millis(1500);

fn tls() -> Address {
    "tls:localhost:0".parse().unwrap()
}

/// A move with these credentials; with what the destination says of those that it refused.
fn over_tls(
    source: &Credentials,
    destination: &Credentials,
    policy: Policy,
) -> (Result<u64, NotSent>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&tls(), Some(destination), PATIENCE).unwrap();
    let mut connect = || listener.address().connect(Some(source), PATIENCE);
    let mut accept = |wait| listener.accept(wait);
    let (sent, _) =
        moved(folder.path(), policy, &mut accept, &mut connect, &mut |_| true, |source, _| source.fill());
    std::thread::sleep(Duration::from_millis(20));
    let refused = listener.refused();
    (sent.map(|sent| sent.bytes), refused)
}

#[test]
fn a_guest_moves_over_tls_on_one_and_on_several_streams() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let (source, destination) = (authority.good("source"), authority.good("destination"));
    for (streams, compress, verify) in [(1, false, false), (4, false, true), (8, true, true)] {
        let policy = Policy { streams, compress, verify, patience: PATIENCE, ..POLICY };
        let (sent, refused) = over_tls(&source, &destination, policy);
        assert!(sent.unwrap() > 4 << 20);
        assert_eq!(refused, Vec::<String>::new());
    }
}

#[test]
fn certificates_that_are_wrong_expired_or_missing_are_refused_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca");
    let other = Authority::new(folder.path(), "other");
    let (good, there) = (authority.good("source"), authority.good("destination"));
    let policy = Policy { patience: PATIENCE, ..POLICY };
    let said = |source: &Credentials, destination: &Credentials| {
        let (sent, refused) = over_tls(source, destination, policy);
        (sent.unwrap_err().to_string(), refused.join("; "))
    };
    // Of another authority: the peer is, or this side is.
    let stranger = Credentials { ca: good.ca.clone(), ..other.good("stranger") };
    let (here, at_destination) = said(&stranger, &there);
    assert!(here.contains("refuses the certificate of this side: use certificates"), "{here}");
    assert!(at_destination.contains("signed by another CA: use certificates"), "{at_destination}");
    let (here, at_destination) = said(&good, &Credentials { ca: there.ca.clone(), ..other.good("impostor") });
    assert!(here.contains("signed by another CA"), "{here}");
    assert!(at_destination.contains("refuses the certificate of this side"), "{at_destination}");
    // Expired, and not valid yet.
    let (here, at_destination) = said(&authority.issue("old", "localhost", (2001, 2002)), &there);
    assert!(here.contains("this side has expired: issue a new one"), "{here}");
    assert!(at_destination.contains("has expired: issue a new one for it"), "{at_destination}");
    let (here, _) = said(&good, &authority.issue("old-too", "localhost", (2001, 2002)));
    assert!(here.contains("the peer's certificate has expired"), "{here}");
    let (_, at_destination) = said(&authority.issue("early", "localhost", (2080, 2090)), &there);
    assert!(at_destination.contains("not valid yet: look at the clocks"), "{at_destination}");
    // For another name.
    let (here, _) = said(&good, &authority.issue("elsewhere", "elsewhere.example", (2020, 2090)));
    assert!(here.contains("for another name: connect to the name that is in it"), "{here}");
    // Missing, or no certificate at all.
    let missing = Credentials { key: folder.path().join("nothing.key"), ..good.clone() };
    let (here, _) = said(&missing, &there);
    assert!(
        here.contains("the key in ") && here.contains("nothing.key") && here.contains("give a file in PEM"),
        "{here}"
    );
    std::fs::write(folder.path().join("noise.crt"), "noise").unwrap();
    let noise = Credentials { certificate: folder.path().join("noise.crt"), ..there.clone() };
    let error = Listener::bind(&tls(), Some(&noise), PATIENCE).err().unwrap().to_string();
    assert!(error.contains("noise.crt cannot be used: there is no certificate in it"), "{error}");
    let error = Listener::bind(&tls(), None, PATIENCE).err().unwrap().to_string();
    assert!(error.contains("name the three files"), "{error}");
    // Still fine.
    assert!(over_tls(&good, &there, policy).0.is_ok());
}

/// What a destination says of somebody who does this.
fn stranger(what: impl FnOnce(TcpStream)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let credentials = Authority::new(folder.path(), "ca").good("destination");
    let listener = Listener::bind(&tls(), Some(&credentials), Duration::from_millis(300)).unwrap();
    let Address::Tls { host, port } = listener.address().clone() else { panic!() };
    what(TcpStream::connect((host.as_str(), port)).unwrap());
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        assert!(listener.accept(Duration::from_millis(10)).unwrap().is_none());
        if let [refused] = &listener.refused()[..] {
            return refused.clone();
        }
    }
    panic!("nobody was refused")
}

#[test]
fn strangers_are_refused_before_anything_is_read_of_them() {
    let told = stranger(|mut socket| {
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        socket.read_to_end(&mut Vec::new()).ok();
    });
    assert!(told.contains("does not speak TLS: use an address that begins with tls:"), "{told}");
    // Says nothing, and holds the connection; nobody waits for it.
    let told = stranger(|socket| {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            drop(socket);
        });
    });
    assert!(told.contains("did not complete the TLS handshake in time"), "{told}");
    let told = stranger(drop);
    assert!(told.contains("ended the connection during the TLS handshake"), "{told}");
    // TLS 1.3, and no certificate.
    let told = stranger(|mut socket| {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier = std::sync::Arc::new(Anybody(provider.clone()));
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let mut session = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut stream = rustls::Stream::new(&mut session, &mut socket);
        let refused = stream.write_all(b"EVKF").and_then(|()| stream.read_to_end(&mut Vec::new()));
        assert!(refused.unwrap_err().to_string().contains("CertificateRequired"));
    });
    assert!(told.contains("the peer shows no certificate: use certificates"), "{told}");
}

/// A client that takes any destination.
#[derive(Debug)]
struct Anybody(std::sync::Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("not TLS 1.3".to_owned()))
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn a_second_client_is_told_and_does_not_disturb() {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::Unix(folder.path().join("destination"));
    let listener = Listener::bind(&address, None, PATIENCE).unwrap();
    let mut accept = |wait| listener.accept(wait);
    let mut connect = || address.connect(None, PATIENCE);
    let mut second = None;
    // While the first guest is on its way, another one is offered, and somebody who says nothing comes as well.
    let mut watch = |progress: &evenkeel_migrate::Progress| {
        if progress.phase == Phase::Copying && second.is_none() {
            let silent = UnixStream::connect(folder.path().join("destination")).unwrap();
            let place = tempfile::tempdir().unwrap();
            let other = std::thread::scope(|scope| {
                let attempt = || {
                    let truth = std::sync::Arc::default();
                    let mut copy = common::guest::Copy::empty(&truth);
                    let mut journal = evenkeel_migrate::JournalFile::open(&place.path().join("j")).unwrap();
                    let about = (evenkeel_handover::Token([77; 16]), evenkeel_handover::Epoch(9));
                    let mut connect = || address.connect(None, PATIENCE);
                    evenkeel_migrate::send(&mut copy, &mut journal, &mut connect, POLICY, about, &mut |_| {
                        true
                    })
                };
                scope.spawn(attempt).join().unwrap()
            });
            second = Some((other, silent));
        }
        true
    };
    let policy = Policy { streams: 3, ..POLICY };
    let (sent, _) = moved(folder.path(), policy, &mut accept, &mut connect, &mut watch, |_, _| {});
    sent.unwrap();
    let refused = second.unwrap().0.unwrap_err();
    assert!(
        matches!(&refused, NotSent::Refused(words) if words.contains("wait until that is over, or choose another")),
        "{refused}"
    );
    // The name is taken while it listens, and gone afterwards; one that a killed process left is taken over.
    let taken = Listener::bind(&address, None, PATIENCE).err().unwrap().to_string();
    assert!(taken.contains("choose another one"), "{taken}");
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("left")).unwrap());
    let left = Listener::bind(&Address::Unix(folder.path().join("left")), None, PATIENCE).unwrap();
    drop(left);
    assert!(!folder.path().join("left").exists());
    let nobody = Address::Unix(folder.path().join("left")).connect(None, PATIENCE).err().unwrap().to_string();
    assert!(nobody.contains("is the destination started"), "{nobody}");
}

#[test]
fn a_guest_moves_over_two_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = || rustix::pipe::pipe().unwrap();
    let ((to_destination, from_source), (to_source, from_destination)) = (pipe(), pipe());
    let mut ours: Option<Box<dyn Stream>> = Some(Box::new(Pipe::new(to_source, from_source)));
    let mut theirs: Option<Box<dyn Stream>> = Some(Box::new(Pipe::new(to_destination, from_destination)));
    let gone = || std::io::Error::other("there is one only");
    let mut accept = |_| theirs.take().map(Some).ok_or_else(gone);
    let mut connect = || ours.take().ok_or_else(gone);
    let policy = Policy { verify: true, compress: true, slow: Slow::Stop, rounds: 50, ..POLICY };
    let (sent, received) = moved(folder.path(), policy, &mut accept, &mut connect, &mut |_| true, |_, _| {});
    assert!(sent.unwrap().verified.is_some() && matches!(received, Received::Runs(_)));
}
