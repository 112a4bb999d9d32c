/* SPDX-License-Identifier: Apache-2.0 */
#include "tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

struct pl_trust {
    SSL_CTX *context;
};

struct pl_tls {
    SSL *ssl;
    BIO *in, *out; /* the session's */
    char name[32]; /* ours, as we call somebody */
    pl_tls_secret secret;
};

struct pl_tls_pairs {
    SSL_CTX *context;
    void (*find)(void *ctx, const char *name, pl_tls_secret *out);
    void *ctx;
};

static const char *last_error(void)
{
    unsigned long code = ERR_get_error();
    ERR_clear_error();
    const char *text = code ? ERR_reason_error_string(code) : NULL;
    return text ? text : "unknown error";
}

pl_trust *pl_trust_open(const char *ca)
{
    pl_trust *t = pl_alloc(sizeof *t);
    t->context = SSL_CTX_new(TLS_client_method());
    if (t->context) {
        SSL_CTX_set_min_proto_version(t->context, TLS1_2_VERSION);
        SSL_CTX_set_verify(t->context, SSL_VERIFY_PEER, NULL);
        int ok = ca ? SSL_CTX_load_verify_locations(t->context, ca, NULL)
                    : SSL_CTX_set_default_verify_paths(t->context);
        if (ok == 1) return t;
    }
    pl_fail(PL_EINVAL, "CA file '%s': %s", ca ? ca : "of the system", last_error());
    pl_trust_close(t);
    return NULL;
}

void pl_trust_close(pl_trust *t)
{
    if (!t) return;
    SSL_CTX_free(t->context);
    pl_free(t);
}

/* Whom its certificate must name: an address, or a name that it is also told. */
static bool set_host(SSL *ssl, const char *host)
{
    X509_VERIFY_PARAM *param = SSL_get0_param(ssl);
    if (X509_VERIFY_PARAM_set1_ip_asc(param, host)) return true;
    ERR_clear_error();
    X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return X509_VERIFY_PARAM_set1_host(param, host, 0) &&
           SSL_set_tlsext_host_name(ssl, host);
}

static pl_tls *open_session(SSL_CTX *context)
{
    pl_tls *s = pl_alloc(sizeof *s);
    s->ssl = SSL_new(context);
    s->in = BIO_new(BIO_s_mem());
    s->out = BIO_new(BIO_s_mem());
    if (!s->ssl || !s->in || !s->out) {
        BIO_free(s->in);
        BIO_free(s->out);
        SSL_free(s->ssl);
        pl_free(s);
        ERR_clear_error();
        return NULL;
    }
    SSL_set_bio(s->ssl, s->in, s->out);
    SSL_set_app_data(s->ssl, s);
    return s;
}

pl_tls *pl_tls_open(pl_trust *t, const char *host)
{
    pl_tls *s = open_session(t->context);
    if (!s) return NULL;
    if (!set_host(s->ssl, host)) {
        pl_tls_close(s);
        ERR_clear_error();
        return NULL;
    }
    SSL_set_connect_state(s->ssl);
    return s;
}

/* ---- by a secret ------------------------------------------------------------------- */

static unsigned give(const pl_tls_secret *secret, unsigned char *out, unsigned room)
{
    if (secret->len <= 0 || (unsigned)secret->len > room) return 0;
    memcpy(out, secret->bytes, (size_t)secret->len);
    return (unsigned)secret->len;
}

static unsigned on_call(SSL *ssl, const char *hint, char *name, unsigned name_room,
                        unsigned char *out, unsigned room)
{
    const pl_tls *s = SSL_get_app_data(ssl);
    (void)hint;
    snprintf(name, name_room, "%s", s->name);
    return give(&s->secret, out, room);
}

static unsigned on_answer(SSL *ssl, const char *name, unsigned char *out, unsigned room)
{
    const pl_tls_pairs *p = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    pl_tls_secret secret = {.len = 0};
    p->find(p->ctx, name, &secret);
    return give(&secret, out, room);
}

pl_tls_pairs *pl_tls_pairs_open(void (*find)(void *ctx, const char *name,
                                             pl_tls_secret *out),
                                void *ctx)
{
    pl_tls_pairs *p = pl_alloc(sizeof *p);
    *p = (pl_tls_pairs){.context = SSL_CTX_new(TLS_method()), .find = find, .ctx = ctx};
    if (p->context && SSL_CTX_set_min_proto_version(p->context, TLS1_3_VERSION) &&
        SSL_CTX_set_ciphersuites(p->context, "TLS_AES_128_GCM_SHA256") &&
        SSL_CTX_set_num_tickets(p->context, 0)) {
        SSL_CTX_set_session_cache_mode(p->context, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_app_data(p->context, p);
        SSL_CTX_set_psk_client_callback(p->context, on_call);
        SSL_CTX_set_psk_server_callback(p->context, on_answer);
        return p;
    }
    pl_fail(PL_EINTERNAL, "no TLS between processes: %s", last_error());
    pl_tls_pairs_close(p);
    return NULL;
}

void pl_tls_pairs_close(pl_tls_pairs *p)
{
    if (!p) return;
    SSL_CTX_free(p->context);
    pl_free(p);
}

pl_tls *pl_tls_answer(pl_tls_pairs *p)
{
    pl_tls *s = open_session(p->context);
    if (s) SSL_set_accept_state(s->ssl);
    return s;
}

pl_tls *pl_tls_call(pl_tls_pairs *p, const char *name, const pl_tls_secret *secret)
{
    pl_tls *s = open_session(p->context);
    if (!s) return NULL;
    snprintf(s->name, sizeof s->name, "%s", name);
    s->secret = *secret;
    /* Who does not know it may offer a certificate, and none is trusted. */
    SSL_set_verify(s->ssl, SSL_VERIFY_PEER, NULL);
    SSL_set_connect_state(s->ssl);
    return s;
}

/* ---- bytes ------------------------------------------------------------------------- */

void pl_tls_close(pl_tls *s)
{
    if (!s) return;
    SSL_free(s->ssl); /* and what it reads and writes by */
    pl_free(s);
}

void pl_tls_received(pl_tls *s, const char *data, size_t len)
{
    BIO_write(s->in, data, (int)len);
}

int pl_tls_shake(pl_tls *s, char *why, size_t room)
{
    ERR_clear_error();
    int code = SSL_do_handshake(s->ssl);
    if (code == 1) return 1;
    if (SSL_get_error(s->ssl, code) == SSL_ERROR_WANT_READ) return 0;
    long verified = SSL_get_verify_result(s->ssl);
    if (verified != X509_V_OK)
        snprintf(why, room, "its certificate is not trusted: %s",
                 X509_verify_cert_error_string(verified));
    else
        snprintf(why, room, "no TLS with it: %s", last_error());
    ERR_clear_error();
    return -1;
}

int pl_tls_read(pl_tls *s, char *out, int room)
{
    ERR_clear_error();
    int n = SSL_read(s->ssl, out, room);
    if (n > 0) return n;
    int error = SSL_get_error(s->ssl, n);
    ERR_clear_error();
    return error == SSL_ERROR_WANT_READ     ? 0
           : error == SSL_ERROR_ZERO_RETURN ? PL_TLS_END
                                            : PL_TLS_BAD;
}

bool pl_tls_write(pl_tls *s, const char *data, size_t len)
{
    ERR_clear_error();
    size_t written;
    return SSL_write_ex(s->ssl, data, len, &written) == 1 && written == len;
}

void pl_tls_unsent(pl_tls *s, pl_buf *out)
{
    char *data;
    long n = BIO_get_mem_data(s->out, &data);
    if (n > 0) pl_buf_add(out, data, (size_t)n);
    (void)BIO_reset(s->out);
}
