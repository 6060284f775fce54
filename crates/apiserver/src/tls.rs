//! The cluster's own certificates, the token and the kubeconfig: made on the first start below `<data>/pki`, private files
//! readable by their owner only. It decides who signs whom and what a certificate says, and knows nothing of requests.

use std::{
    fs,
    io::Write,
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};

use crate::{
    Error,
    auth::{AUTHENTICATED, MASTERS, User},
};

const CA_YEARS: i32 = 10;
const LEAF_YEARS: i32 = 1;

/// What the listener and the kubeconfig need.
pub struct Pki {
    pub ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    pub token: String,
}

/// A certificate with its key.
struct Leaf {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Pki {
    /// Reads the CA and the token, or makes them.
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        let dir = data_dir.join("pki");
        fs::create_dir_all(&dir).map_err(|e| Error::file(&dir, &e))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(|e| Error::file(&dir, &e))?;
        let (ca_pem, key) = certificate_authority(&dir)?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(|e| Error::pki(&e))?;
        let ca_der = first_certificate(&ca_pem)?;
        let token = token(&data_dir.join("token"))?;
        Ok(Self { ca_pem, ca_der, issuer, token })
    }

    /// A fresh server certificate for the names and addresses, asking clients for a certificate without requiring one.
    pub fn server_config(&self, names: &[String], addresses: &[IpAddr]) -> Result<rustls::ServerConfig, Error> {
        let mut params = leaf_params("portolan-apiserver", None, ExtendedKeyUsagePurpose::ServerAuth)?;
        for name in names {
            let name = name.as_str().try_into().map_err(|e: rcgen::Error| Error::pki(&e))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        let leaf = self.sign(params)?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone()).map_err(|e| Error::Pki(e.to_string()))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| Error::Pki(e.to_string()))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key.serialize_der()));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::Pki(e.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![leaf.certificate.der().clone(), self.ca_der.clone()], key)
            .map_err(|e| Error::Pki(e.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Writes a kubeconfig whose client certificate is in `system:masters`. The server's name in it is `server`.
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), Error> {
        let params = leaf_params("portolan-admin", Some(MASTERS), ExtendedKeyUsagePurpose::ClientAuth)?;
        let leaf = self.sign(params)?;
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: portolan\npreferences: {{}}\nclusters:\n- name: portolan\n  cluster:\n    \
             server: {server}\n    certificate-authority-data: {}\ncontexts:\n- name: portolan\n  context:\n    cluster: \
             portolan\n    user: portolan-admin\nusers:\n- name: portolan-admin\n  user:\n    client-certificate-data: {}\n    \
             client-key-data: {}\n",
            STANDARD.encode(&self.ca_pem),
            STANDARD.encode(leaf.certificate.pem()),
            STANDARD.encode(leaf.key.serialize_pem()),
        );
        write_private(path, text.as_bytes())
    }

    fn sign(&self, params: CertificateParams) -> Result<Leaf, Error> {
        let key = KeyPair::generate().map_err(|e| Error::pki(&e))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|e| Error::pki(&e))?;
        Ok(Leaf { certificate, key })
    }
}

/// Common name and organisations of a verified client certificate: user and groups (as upstream reads them).
pub fn user_of(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let organisations: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let mut user = User::new(&name, &organisations);
    user.groups.push(AUTHENTICATED.into());
    Some(user)
}

fn certificate_authority(dir: &Path) -> Result<(String, KeyPair), Error> {
    let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
    if cert_path.exists() && key_path.exists() {
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(|e| Error::damaged(&key_path, &e))?;
        return Ok((read(&cert_path)?, key));
    }
    let mut params = CertificateParams::new(Vec::new()).map_err(|e| Error::pki(&e))?;
    params.distinguished_name.push(DnType::CommonName, "portolan-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    set_validity(&mut params, CA_YEARS);
    let key = KeyPair::generate().map_err(|e| Error::pki(&e))?;
    let pem = params.self_signed(&key).map_err(|e| Error::pki(&e))?.pem();
    write_private(&key_path, key.serialize_pem().as_bytes())?;
    write_private(&cert_path, pem.as_bytes())?;
    Ok((pem, key))
}

fn leaf_params(
    name: &str,
    organisation: Option<&str>,
    usage: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new()).map_err(|e| Error::pki(&e))?;
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    set_validity(&mut params, LEAF_YEARS);
    Ok(params)
}

/// From yesterday, because clocks differ.
fn set_validity(params: &mut CertificateParams, years: i32) {
    let now = jiff::Timestamp::now().as_second();
    let days = now.div_euclid(86_400) - 1;
    let (year, month, day) = civil(days);
    params.not_before = rcgen::date_time_ymd(year, month, day);
    // The 29th of February exists in one year of four.
    params.not_after = rcgen::date_time_ymd(year + years, month, day.min(28));
}

/// Days since 1970-01-01 as a date of the proleptic Gregorian calendar.
fn civil(days: i64) -> (i32, u8, u8) {
    let date = jiff::Timestamp::from_second(days * 86_400)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    (date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
}

fn token(path: &Path) -> Result<String, Error> {
    if path.exists() {
        let token = read(path)?.trim().to_owned();
        if !token.is_empty() {
            return Ok(token);
        }
    }
    let random: [u8; 32] = rand::random();
    let token: String = random.iter().map(|b| format!("{b:02x}")).collect();
    write_private(path, token.as_bytes())?;
    Ok(token)
}

fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, Error> {
    use rustls::pki_types::pem::PemObject;
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::Pki(format!("ca.crt: {e}")))
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|e| Error::file(path, &e))
}

/// Replaces a file that only its owner may read, in one step.
fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".new");
    let partial = PathBuf::from(partial);
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&partial);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|e| Error::file(path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_survive_a_restart_and_name_their_user() {
        let dir = tempfile::tempdir().expect("dir");
        let first = Pki::open(dir.path()).expect("first");
        let again = Pki::open(dir.path()).expect("again");
        assert_eq!((&first.ca_pem, &first.token), (&again.ca_pem, &again.token));

        let leaf = again
            .sign(leaf_params("alice", Some("ops"), ExtendedKeyUsagePurpose::ClientAuth).expect("params"))
            .expect("leaf");
        let user = user_of(leaf.certificate.der()).expect("user");
        assert_eq!(user, User::new("alice", &["ops", AUTHENTICATED]));

        again.server_config(&["localhost".into()], &["127.0.0.1".parse().expect("address")]).expect("server");
        let path = dir.path().join("kubeconfig");
        again.write_kubeconfig(&path, "https://127.0.0.1:6443").expect("kubeconfig");
        for private in ["kubeconfig", "token", "pki/ca.key"] {
            let mode = fs::metadata(dir.path().join(private)).expect(private).permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{private}");
        }
    }
}
